// The page: keeps the conversation, asks the server, and draws what comes. Talks to its own server alone.
import { make, turn } from "./view.js";

const $ = (id) => document.getElementById(id);
const state = { model: null, turns: [], running: null };
const EXAMPLE = [{ type: "function", function: { name: "get_weather", description: "The weather at a place.", parameters: { type: "object", properties: { place: { type: "string" } }, required: ["place"] } } }];
const SHOWN = 5;
const IDEAS = ["Who are you?", "What is 17 + 25?", "Name three colours."];
const WEATHER = "What is the weather in Oslo?";

// Settings

async function start() {
  theme(localStorage.getItem("theme") ?? "auto");
  for (const slider of document.querySelectorAll("input[type=range]")) follow(slider);
  if (matchMedia("(max-width: 48rem)").matches) showPanel(false);
  $("key").value = sessionStorage.getItem("key") ?? "";
  await connect();
  $("message").focus();
}

async function connect() {
  const response = await fetch("v1/models", { headers: headers() }).catch(() => null);
  if (!response) return notice("The server does not answer.");
  if (response.status === 401) {
    $("access").hidden = false;
    showPanel(true);
    return notice("This server asks for an API key: give it in the settings.");
  }
  notice("");
  state.model = (await response.json()).data[0];
  $("model").textContent = state.model.id;
  $("functions").hidden = !state.model.tools;
  if (!state.model.format) notice("This model has no chat format, so it cannot chat here.");
  welcome();
  $("attributes").replaceChildren($("attributes").firstElementChild);
  for (const [name, one] of Object.entries(state.model.attributes)) $("attributes").append(attribute(name, one));
  $("attributes").hidden = !Object.keys(state.model.attributes).length;
}

// What stands where nothing was said yet.
function welcome() {
  const { id, context_length: context, format, tools } = state.model;
  $("about").textContent = [id, format && `format ${format}`, context && `${context.toLocaleString("en")} tokens of context`].filter(Boolean).join(" · ");
  const idea = (text, act) => make("button", { type: "button", text, onclick: act });
  $("ideas").replaceChildren(...(format ? IDEAS.map((text) => idea(text, () => ask(text))) : []));
  if (format && tools) $("ideas").append(idea("Call a function", () => { example(); ask(WEATHER); }));
}

function example() {
  $("tools").value = JSON.stringify(EXAMPLE, null, 2);
  readTools();
}

function attribute(name, { minimum, maximum, default: value }) {
  const id = `attribute-${name}`;
  const slider = make("input", { id, type: "range", min: minimum, max: maximum, step: 1, "data-attribute": name });
  slider.value = value;
  const shown = make("div", { class: "slider" }, make("label", { for: id, text: name }), make("output", { for: id }), slider);
  follow(slider);
  return shown;
}

function follow(slider) {
  const show = () => { slider.parentElement.querySelector("output").textContent = slider.value; };
  slider.addEventListener("input", show);
  show();
}

function readTools() {
  const text = $("tools").value.trim();
  let problem = "";
  let tools = [];
  try {
    tools = text ? JSON.parse(text) : [];
    if (!Array.isArray(tools)) tools = [tools];
    // A bare function schema is wrapped as the API wants it.
    tools = tools.map((tool) => (tool.function ? tool : { type: "function", function: tool }));
    if (tools.some((tool) => typeof tool.function.name !== "string")) problem = "Every function needs a name.";
  } catch (error) {
    problem = `Not valid JSON: ${error.message}`;
  }
  $("tools").classList.toggle("invalid", Boolean(problem));
  $("tools").setAttribute("aria-invalid", String(Boolean(problem)));
  $("toolsaid").textContent = problem || (tools.length ? `${tools.length} offered: ${tools.map((tool) => tool.function.name).join(", ")}` : "");
  return problem ? null : tools;
}

function headers() {
  const key = $("key").value;
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

function body(tools) {
  const asked = {
    model: state.model.id, stream: true, stream_options: { include_usage: true },
    messages: messages(), temperature: Number($("temperature").value), top_p: Number($("top_p").value),
  };
  if ($("limit").value) asked.max_completion_tokens = Number($("limit").value);
  if ($("seed").value) asked.seed = Number($("seed").value);
  if ($("probabilities").checked) Object.assign(asked, { logprobs: true, top_logprobs: SHOWN });
  if (tools.length) Object.assign(asked, { tools, tool_choice: $("choice").value });
  const sliders = [...document.querySelectorAll("[data-attribute]")];
  if (sliders.length) asked.attributes = Object.fromEntries(sliders.map((slider) => [slider.dataset.attribute, Number(slider.value)]));
  return asked;
}

// What the server gets: results of calls stand behind their answer, as messages of their own.
function messages() {
  const system = $("system").value.trim();
  const out = system ? [{ role: "system", content: system }] : [];
  for (const { role, content, tool_calls: calls } of state.turns) {
    out.push({ role, content, ...(calls ? { tool_calls: calls.map(({ id, type, function: f }) => ({ id, type, function: f })) } : {}) });
    for (const call of calls ?? []) if (call.result !== undefined) out.push({ role: "tool", tool_call_id: call.id, content: call.result });
  }
  return out;
}

// The conversation

function draw() {
  const actions = {
    probabilities: $("probabilities").checked,
    redraw: draw,
    again: () => { if (!state.running) { state.turns.pop(); answer(); } },
    resend: (index, text) => { if (!state.running) { state.turns.length = index; ask(text); } },
    result: (call, text) => {
      call.result = text;
      const pending = state.turns.at(-1).tool_calls.some((one) => one.result === undefined);
      draw();
      if (!pending && !state.running) answer();
    },
  };
  $("welcome").hidden = state.turns.length > 0;
  $("log").replaceChildren(...state.turns.map((message, index) => turn(message, index, actions, index === state.turns.length - 1)));
  $("log").scrollTop = $("log").scrollHeight;
}

function ask(text) {
  state.turns.push({ role: "user", content: text });
  return answer();
}

async function answer() {
  const tools = readTools();
  notice("");
  if (!state.model?.format) return connect();
  draw();
  if (!tools) return notice("The list of functions is not valid: correct it in the settings.");
  const asked = body(tools);
  const message = { role: "assistant", content: "", busy: true, tokens: [] };
  const abort = new AbortController();
  state.turns.push(message);
  state.running = abort;
  busy(true);
  draw();
  const begun = performance.now();
  let reason = "";
  try {
    const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(asked), signal: abort.signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      take(message, chunk, performance.now() - begun);
      reason = chunk.choices[0]?.finish_reason ?? reason;
      refresh(message, performance.now() - begun);
    }
  } catch (error) {
    reason = abort.signal.aborted ? "stopped" : "failed";
    if (!abort.signal.aborted) notice(error.message);
  }
  finish(message, reason, performance.now() - begun);
}

function take(message, chunk, elapsed) {
  if (chunk.usage) message.usage = chunk.usage;
  if (chunk.cache) message.cache = chunk.cache.kind;
  const choice = chunk.choices[0];
  if (!choice) return;
  message.first ??= elapsed;
  message.pieces = (message.pieces ?? 0) + (choice.delta.content ? 1 : 0);
  message.content += choice.delta.content ?? "";
  message.tokens.push(...(choice.logprobs?.content ?? []));
  for (const part of choice.delta.tool_calls ?? []) {
    message.tool_calls ??= [];
    message.tool_calls[part.index] ??= { id: part.id, type: "function", function: { name: part.function.name, arguments: "" } };
    message.tool_calls[part.index].function.arguments += part.function.arguments ?? "";
  }
}

// Only the text grows while an answer comes: a whole redraw for each token would grow with the conversation. Once a picture at most:
// a quick model sends thousands of tokens a second, and a page that lays its text out for each of them hears no click on Stop.
function refresh(message, elapsed) {
  message.elapsed = elapsed;
  if (message.waiting) return;
  message.waiting = true;
  requestAnimationFrame(() => {
    message.waiting = false;
    if (message.busy) grow(message);
  });
}

function grow(message) {
  const text = $("log").lastElementChild.querySelector(".text");
  const live = $("log").lastElementChild.querySelector(".live");
  const after = message.elapsed - message.first;
  if (message.pieces > 3 && after > 0) live.textContent = `${((1000 * message.pieces) / after).toFixed(0)} pieces/s`;
  const near = $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 80;
  text.textContent = message.content;
  if (near) $("log").scrollTop = $("log").scrollHeight;
}

function finish(message, reason, elapsed) {
  message.busy = false;
  const tokens = message.usage?.completion_tokens;
  const after = elapsed - (message.first ?? elapsed);
  const parts = [];
  if (message.first !== undefined) parts.push(`first token after ${Math.round(message.first)} ms`);
  // Where all came in one piece, its own time is nothing: then the whole counts.
  const [count, time] = after > 20 ? [tokens - 1, after] : [tokens, elapsed];
  if (tokens > 1 && time > 0) parts.push(`${((1000 * count) / time).toFixed(1)} tokens/s`);
  if (tokens) parts.push(`${tokens} tokens`);
  if (message.cache) parts.push({ exact: "answered before", near: "answered before, to a like question" }[message.cache] ?? message.cache);
  else if (message.usage?.prompt_tokens_details?.cached_tokens) parts.push(`${message.usage.prompt_tokens_details.cached_tokens} of the prompt from the cache`);
  parts.push({ length: "ended by its length", stopped: "stopped", failed: "failed", tool_calls: "waits for the result" }[reason] ?? "");
  message.figures = parts.filter(Boolean).join(" · ");
  if (!message.content && !message.tool_calls) takeBack();
  state.running = null;
  busy(false);
  draw();
  $("status").textContent = reason === "failed" ? "The answer failed." : `The answer is complete. ${message.content}`;
  $("message").focus();
}

// An answer that never began is no turn. What asked for it goes back to where it was typed: two questions in a row are refused.
function takeBack() {
  state.turns.pop();
  const last = state.turns.at(-1);
  if (last?.role === "user") {
    state.turns.pop();
    $("message").value ||= last.content;
    fit();
  } else for (const call of last?.tool_calls ?? []) delete call.result;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// Controls

function busy(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
  $("new").disabled = on;
}

// The field grows with its text, up to a third of the window.
function fit() {
  const field = $("message");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight + 2, innerHeight / 3)}px`;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function showPanel(on) {
  $("settings").hidden = !on;
  $("panel").setAttribute("aria-expanded", String(on));
}

function theme(name) {
  localStorage.setItem("theme", name);
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $("theme").textContent = { auto: "◐", light: "☀", dark: "☾" }[name];
  $("theme").setAttribute("aria-label", `Colours: ${{ auto: "automatic" }[name] ?? name}`);
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("message").value;
  if (!text.trim() || state.running) return;
  const waits = state.turns.at(-1)?.tool_calls?.some((call) => call.result === undefined);
  if (waits) return notice("Give the result of the call first, or edit your message.");
  $("message").value = "";
  fit();
  ask(text);
});
$("message").addEventListener("keydown", (event) => {
  // While an input method composes (Korean, Japanese), Enter belongs to it.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("composer").requestSubmit(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") state.running?.abort(); });
$("stop").addEventListener("click", () => state.running?.abort());
$("new").addEventListener("click", () => { state.turns = []; notice(""); draw(); $("message").focus(); });
$("panel").addEventListener("click", () => showPanel($("settings").hidden));
$("theme").addEventListener("click", () => theme({ auto: "dark", dark: "light", light: "auto" }[localStorage.getItem("theme") ?? "auto"]));
$("key").addEventListener("change", () => { sessionStorage.setItem("key", $("key").value); connect(); });
$("tools").addEventListener("input", readTools);
$("example").addEventListener("click", example);
$("message").addEventListener("input", fit);
$("probabilities").addEventListener("change", () => { if (!state.running) draw(); });

start();
