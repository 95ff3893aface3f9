// Builds the parts of a conversation on the screen. Knows no network and keeps no state; every text goes in as text, never as markup.

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "text") element[name === "text" ? "textContent" : "value"] = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

const NAMES = { user: "You", assistant: "Model", tool: "Tool" };

export function turn(message, index, actions, last) {
  const card = make("article", { class: message.role, "data-index": index, "aria-busy": message.busy ? "true" : "false" });
  card.append(make("h2", { text: NAMES[message.role] }));
  card.append(message.tokens?.length && actions.probabilities ? probabilities(message) : make("div", { class: "text", text: message.content ?? "" }));
  for (const call of message.tool_calls ?? []) card.append(shownCall(call, actions));
  if (message.busy) card.append(make("p", { class: "live", "aria-hidden": "true" }));
  if (message.figures) card.append(make("p", { class: "figures", text: message.figures }));
  const tools = make("div", { class: "tools" });
  const offer = (text, act) => tools.append(make("button", { type: "button", text, onclick: act }));
  if (message.role === "user") offer("Edit", () => edit(card, message, index, actions));
  else if (!message.busy) {
    // Browsers give the clipboard to secure pages and to this machine's own alone.
    if (navigator.clipboard && message.content) offer("Copy", (event) => navigator.clipboard.writeText(message.content).then(() => { event.target.textContent = "Copied"; }));
    if (last && !message.tool_calls) offer("Again", actions.again);
  }
  if (tools.childElementCount) card.append(tools);
  return card;
}

function edit(card, message, index, actions) {
  const field = make("textarea", { rows: 3, "aria-label": "Edited message", value: message.content });
  const form = make(
    "form",
    { onsubmit: (event) => { event.preventDefault(); if (field.value.trim()) actions.resend(index, field.value); } },
    field,
    make("div", { class: "tools" }, make("button", { type: "submit", text: "Send again" }), make("button", { type: "button", text: "Cancel", onclick: actions.redraw })),
  );
  card.replaceChildren(make("h2", { text: "You" }), form);
  field.focus();
}

function shownCall(call, actions) {
  const shown = make("section", { class: "call", "aria-label": `Call of ${call.function.name}` });
  shown.append(make("h3", { text: call.function.name }), make("pre", { text: pretty(call.function.arguments) }));
  if (call.result !== undefined) {
    shown.append(make("p", { class: "figures", text: "Result" }), make("pre", { class: "result", text: call.result }));
    return shown;
  }
  const field = make("textarea", { rows: 2, "aria-label": `Result of ${call.function.name}`, placeholder: "What the function gives back" });
  shown.append(
    make(
      "form",
      { onsubmit: (event) => { event.preventDefault(); actions.result(call, field.value); } },
      field,
      make("div", { class: "tools" }, make("button", { type: "submit", text: "Give result" })),
    ),
  );
  return shown;
}

export function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

// One token is in the tab order; arrow keys go to the others.
function probabilities(message) {
  const about = make("div", { "aria-live": "polite" });
  const tokens = message.tokens.map((token, i) =>
    make("span", {
      class: "token", role: "button", tabindex: i === 0 ? 0 : -1, "aria-pressed": "false", text: token.token,
      "aria-label": `${token.token}, ${percent(token.logprob)}`, style: false,
      onclick: () => choose(i),
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (step && tokens[i + step]) { event.preventDefault(); choose(i + step); tokens[i + step].focus(); }
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(i); }
      },
    }),
  );
  // The stricter style policy forbids style attributes in markup; the property is allowed.
  tokens.forEach((span, i) => { span.style.backgroundColor = `rgba(var(--hue-low), ${(0.65 * (1 - Math.exp(message.tokens[i].logprob))).toFixed(3)})`; });
  function choose(at) {
    tokens.forEach((span, i) => { span.setAttribute("aria-pressed", String(i === at)); span.tabIndex = i === at ? 0 : -1; });
    about.replaceChildren(alternatives(message.tokens[at]));
  }
  return make("div", {}, make("div", { class: "text", role: "group", "aria-label": "Answer, token by token" }, ...tokens), about);
}

function alternatives(token) {
  const rows = token.top_logprobs.length ? token.top_logprobs : [token];
  return make(
    "table",
    { class: "alternatives" },
    make("caption", { text: `Alternatives to “${visible(token.token)}” (${percent(token.logprob)})` }),
    ...rows.map((one) =>
      make(
        "tr",
        {},
        make("th", { scope: "row", text: visible(one.token) }),
        make("td", { class: "share", text: percent(one.logprob) }),
        make("td", {}, make("meter", { min: 0, max: 1, "aria-hidden": "true", value: Math.exp(one.logprob) })),
      ),
    ),
  );
}

export const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)} %`;
const visible = (text) => text.replace(/\n/g, "⏎").replace(/^ | $/g, "␣");
