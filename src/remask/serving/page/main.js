// The page: what is asked, and the answers as they are written.

import { Canvas, told } from "./canvas.js";
import { curl, python } from "./code.js";
import { keepKey, models, ServerError, stream } from "./server.js";
import { Settings } from "./settings.js";

const at = (id) => document.getElementById(id);
const GAP = /\[\[(\d+)\]\]/g;
const WELCOME = {
  chat: "Write a message. The answer is a canvas of masks, and you see each token as it is written: the stronger its ground, the surer the model was.",
  infill: "Write a text with gaps: [[4]] stands for four tokens that are missing. The model writes them, and nothing else.",
};

const page = { mode: "chat", models: [], sides: [], turns: [], running: null };

function say(text) {
  at("said").textContent = text;
}

async function connect() {
  try {
    page.models = await models();
  } catch (error) {
    at("served").textContent = error.status === 401 ? "The server asks for a key." : `The server does not answer: ${error.message}`;
    at("key-form").hidden = error.status !== 401;
    return;
  }
  at("key-form").hidden = true;
  const names = page.models.map((model) => model.id).join(", ");
  at("served").textContent = `${names} · ${page.models[0].attention === "full" ? "full attention" : page.models[0].attention}`;
  page.sides = [new Settings("", page.models)];
  showSettings();
}

function showSettings() {
  at("settings").replaceChildren(...page.sides.map((side) => side.element));
  document.querySelector(".layout").classList.toggle("two", page.sides.length > 1);
}

function showMode(mode) {
  page.mode = mode;
  at("mode-chat").setAttribute("aria-pressed", String(mode === "chat"));
  at("mode-infill").setAttribute("aria-pressed", String(mode === "infill"));
  at("infill-context").hidden = mode !== "infill";
  at("prompt-label").textContent = mode === "chat" ? "Your message" : "Text with gaps";
  at("prompt-hint").textContent = mode === "chat" ? "Ctrl+Enter sends, Escape stops." : "[[4]] is a gap of four tokens. Ctrl+Enter sends.";
  clear();
}

function clear() {
  page.running?.abort();
  page.turns = [];
  const empty = document.createElement("p");
  empty.className = "empty";
  empty.textContent = WELCOME[page.mode];
  at("log").replaceChildren(empty);
}

/** The path and the body of a request for one side. */
function requestOf(side, text) {
  if (page.mode === "chat") {
    const messages = [...page.turns.map((turn) => turn.of(side)).flat(), { role: "user", content: text }];
    return ["v1/chat/completions", { ...side.fields(false), messages }];
  }
  const mask = side.model.mask;
  const filled = text.replace(GAP, (_, count) => mask.repeat(Number(count)));
  const context = at("context").value;
  return ["v1/infill", { ...side.fields(true), text: filled, ...(context ? { prompt: context } : {}) }];
}

async function send(event) {
  event?.preventDefault();
  const text = at("prompt").value;
  if (page.running || !page.sides.length || !text.trim()) return;
  let requests;
  try {
    requests = page.sides.map((side) => requestOf(side, text));
  } catch (error) {
    say(error.message);
    showError(error.message);
    return;
  }
  if (!at("log").querySelector(".turn")) at("log").replaceChildren();
  const turn = document.createElement("article");
  turn.className = "turn";
  const asked = document.createElement("p");
  asked.className = "user";
  asked.textContent = text;
  const answers = document.createElement("div");
  answers.className = requests.length > 1 ? "answers two-answers" : "answers";
  const boxes = requests.map(([path, body], number) => answerBox(path, body, page.sides[number]));
  answers.append(...boxes.map((box) => box.element));
  turn.append(asked, answers);
  at("log").append(turn);
  answers.scrollIntoView({ block: "nearest" });
  if (page.mode === "chat") at("prompt").value = "";
  page.running = new AbortController();
  busy(true);
  say("The answer is being written.");
  await Promise.all(boxes.map((box) => box.run(page.running.signal)));
  page.running = null;
  busy(false);
  if (page.mode === "chat" && boxes.every((box) => box.text !== null)) {
    const texts = new Map(page.sides.map((side, number) => [side, boxes[number].text]));
    const of = (side) => [{ role: "user", content: text }, { role: "assistant", content: texts.get(side) ?? boxes[0].text }];
    page.turns.push({ of });
  }
  at("prompt").focus();
}

function showError(message) {
  const line = document.createElement("p");
  line.className = "error";
  line.textContent = message;
  at("log").append(line);
}

function busy(is) {
  at("send").disabled = is;
  at("stop").disabled = !is;
}

/** An answer on the page: its canvas, what is told of it, and what can be done with it afterwards. */
function answerBox(path, body, side) {
  const element = document.createElement("section");
  element.className = "answer";
  const title = document.createElement("h2");
  title.textContent = describe(body);
  const canvas = new Canvas(document.createElement("p"), side.model.ends);
  canvas.element.className = "canvas";
  canvas.element.setAttribute("aria-label", `The canvas of ${body.model}`);
  const line = document.createElement("p");
  line.className = "told";
  const tools = document.createElement("div");
  tools.className = "tools";
  element.append(title, canvas.element, line, tools);
  const box = { element, text: null, run };

  async function run(signal) {
    let text = "";
    try {
      const options = { stream: true, stream_options: { canvas: true } };
      await stream(path, { ...body, ...options }, signal, (event) => {
        const choice = event.choices[0];
        text += choice?.delta?.content ?? choice?.text ?? "";
        if (event.canvas) canvas.take(event.canvas);
        line.textContent = told(canvas);
      });
      box.text = text;
      element.dataset.text = text;
      say(`The answer: ${text}`);
      tools.append(scrubber(canvas, line));
    } catch (error) {
      const stopped = error.name === "AbortError";
      if (stopped) line.textContent = `${line.textContent} · stopped`;
      else {
        const wrong = document.createElement("p");
        wrong.className = "error";
        wrong.textContent = error instanceof ServerError ? error.message : `The server cannot be reached: ${error.message}`;
        element.append(wrong);
      }
      say(stopped ? "Stopped." : "The answer failed.");
    }
    tools.append(copier("Copy as curl", () => curl(path, body)), copier("Copy as Python", () => python(path, body)));
  }
  return box;
}

function describe(body) {
  const settings = Object.entries(body).filter(([name]) => !["model", "messages", "text", "prompt"].includes(name));
  return [body.model, ...settings.map(([name, value]) => `${name} ${value}`)].join(" · ");
}

function scrubber(canvas, line) {
  const label = document.createElement("label");
  const range = document.createElement("input");
  Object.assign(range, { type: "range", min: 1, max: canvas.count(), value: canvas.count() });
  const number = document.createElement("output");
  const show = () => {
    const at = Number(range.value);
    canvas.drawStep(at - 1);
    number.textContent = `${at} / ${canvas.count()}`;
  };
  range.addEventListener("input", show);
  show();
  label.append("Step", range, number);
  line.textContent = told(canvas);
  return label;
}

function copier(text, made) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(made());
      button.textContent = "Copied";
    } catch {
      const shown = document.createElement("textarea");
      shown.value = made();
      shown.rows = 8;
      shown.readOnly = true;
      shown.setAttribute("aria-label", text);
      button.after(shown);
      shown.select();
    }
    setTimeout(() => (button.textContent = text), 1500);
  });
  return button;
}

at("form").addEventListener("submit", send);
at("stop").addEventListener("click", () => page.running?.abort());
at("clear").addEventListener("click", clear);
at("mode-chat").addEventListener("click", () => showMode("chat"));
at("mode-infill").addEventListener("click", () => showMode("infill"));
at("compare").addEventListener("click", () => {
  const two = page.sides.length < 2;
  if (!page.sides.length) return;
  if (two) {
    page.sides = [new Settings("A", page.models), new Settings("B", page.models)];
  } else {
    page.sides = [new Settings("", page.models)];
  }
  at("compare").setAttribute("aria-pressed", String(two));
  showSettings();
  clear();
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(at("key").value);
  connect();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") page.running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
});
if (window.matchMedia("(max-width: 800px)").matches) at("settings-box").open = false;
clear();
connect();
