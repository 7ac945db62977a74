// The same request in a shell and in Python.

/** A curl command that sends this body. */
export function curl(path, body) {
  const data = JSON.stringify(body, null, 2).replaceAll("'", String.raw`'\''`);
  const key = sessionStorage.getItem("remask-key") ? ` \\\n  -H "Authorization: Bearer $REMASK_API_KEY"` : "";
  return `curl -N ${address(path)} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d '${data}'`;
}

/** Python that sends this body: OpenAI's client, or plain HTTP for what that does not have. */
export function python(path, body) {
  const key = sessionStorage.getItem("remask-key") ? `os.environ["REMASK_API_KEY"]` : `"none"`;
  const first = key.startsWith("os") ? "import os\n\n" : "";
  if (path !== "v1/chat/completions") {
    return `${first}import httpx2\n\nbody = ${literal(body)}\nanswer = httpx2.post("${address(path)}", json=body, timeout=None${
      key.startsWith("os") ? `, headers={"Authorization": "Bearer " + ${key}}` : ""
    })\nprint(answer.json()["choices"][0]["text"])\n`;
  }
  const known = ["model", "messages", "max_tokens", "temperature", "top_p", "seed"];
  const named = known.filter((name) => name in body).map((name) => `    ${name}=${literal(body[name], 1)},\n`).join("");
  const own = Object.fromEntries(Object.entries(body).filter(([name]) => !known.includes(name)));
  const extra = Object.keys(own).length ? `    extra_body=${literal(own, 1)},\n` : "";
  return `${first}from openai import OpenAI\n\nclient = OpenAI(base_url="${address("v1")}", api_key=${key})\nanswer = client.chat.completions.create(\n${named}${extra})\nprint(answer.choices[0].message.content)\n`;
}

function address(path) {
  return new URL(path, document.baseURI).href;
}

function literal(value, depth = 0) {
  const pad = "    ".repeat(depth + 1);
  const end = "    ".repeat(depth);
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return value.length ? `[\n${value.map((one) => `${pad}${literal(one, depth + 1)},\n`).join("")}${end}]` : "[]";
  if (typeof value === "object") {
    return `{\n${Object.entries(value).map(([key, one]) => `${pad}${JSON.stringify(key)}: ${literal(one, depth + 1)},\n`).join("")}${end}}`;
  }
  return JSON.stringify(value);
}
