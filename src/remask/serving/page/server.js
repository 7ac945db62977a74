// What the page asks of the server. All of it is the public protocol: the page can do nothing that a client cannot.

const KEY = "remask-key";

/** An error that the server answered with. */
export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { "Content-Type": "application/json", Authorization: `Bearer ${key}` } : { "Content-Type": "application/json" };
}

/** Keep a key until the tab is closed. */
export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function refuse(response) {
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // not the server's own error: its status is all there is to tell
  }
  throw new ServerError(response.status, message);
}

/** The models that are served, with their default settings. */
export async function models() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) await refuse(response);
  return (await response.json()).data;
}

/** Call `told` with each event of a stream, until it ends or `signal` aborts it. */
export async function stream(path, body, signal, told) {
  const response = await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
  if (!response.ok) await refuse(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ServerError(0, "the server ended the answer before it was whole");
    rest += value;
    const lines = rest.split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(response.status, event.error.message);
      told(event);
    }
  }
}
