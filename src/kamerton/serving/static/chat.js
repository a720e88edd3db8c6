// The chat page. Texts of models and users are put in by textContent alone. In side by side both models are asked the same
// conversation, so that what is said of their answers can be trained on; it goes on with the better answer, or the left one.
// The oldest turns that no longer fit both are not sent; the server counts them, and the page says where that begins.
import { Refused, answer, clean, get, post, setKey } from "./chat-wire.js";
import { $, make, say } from "./page.js";

const FIELDS = ["system", "temperature", "top_p", "max_tokens", "seed", "labeller", "message"];
const SAVED = "kamerton-chat";
let turns = []; // each: {text, system, dropped, went, better, answers: [{model, text, …}]}
let models = [], both = false, feedback = false, running = null;

// -- elements

function button(text, act, className, pressed) {
  const made = make("button", text, className);
  if (pressed !== undefined) made.setAttribute("aria-pressed", String(pressed));
  made.addEventListener("click", () => act(made));
  return made;
}

// A thumb of our own: not every machine has letters for it. Down is the same one turned round by the style sheet.
function thumbSign() {
  const name = "http://www.w3.org/2000/svg", made = document.createElementNS(name, "svg");
  made.setAttribute("viewBox", "0 0 20 20");
  made.setAttribute("aria-hidden", "true");
  const path = made.appendChild(document.createElementNS(name, "path"));
  path.setAttribute("d", "M2 9h3v9H2zM7.5 18V9l3.6-7c1.6 0 2.4 1 2.1 2.5L12.6 8H17c1 0 1.7.9 1.5 1.9l-1.4 6.5c-.2 1-1 1.6-2 1.6z");
  return made;
}

// -- what is kept in this browser

function save() {
  const fields = Object.fromEntries(FIELDS.map((id) => [id, $(id).value]));
  const kept = { version: 1, turns, fields, both, models: [$("model-0").value, $("model-1").value] };
  try { localStorage.setItem(SAVED, JSON.stringify(kept)); } catch { say("This browser cannot keep the conversation.", true); }
}

function restore() {
  let kept = null;
  try { kept = JSON.parse(localStorage.getItem(SAVED)); } catch { /* nothing that can be read */ }
  if (!kept || kept.version !== 1) return;
  turns = kept.turns;
  for (const id of FIELDS) if (typeof kept.fields[id] === "string") $(id).value = kept.fields[id];
  both = kept.both && models.length > 0;
  kept.models.forEach((name, i) => { if (models.includes(name)) $(`model-${i}`).value = name; });
}

// -- what models are asked

function wentWith(turn) {
  if (turn.went !== undefined) return turn.went;
  if (turn.better !== undefined) return turn.better;
  return Math.max(0, turn.answers.findIndex((one) => one.text));
}

// Turns without an answer are not part of the conversation.
const spoken = (until) => turns.slice(0, until).filter((turn) => turn.answers[wentWith(turn)].text);

function conversation(until, system, text, dropped = 0) {
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of spoken(until).slice(dropped)) {
    messages.push({ role: "user", content: turn.text }, { role: "assistant", content: turn.answers[wentWith(turn)].text });
  }
  messages.push({ role: "user", content: text });
  return messages;
}

const asked = (at) => conversation(at, turns[at].system, turns[at].text, turns[at].dropped);

// How many of the oldest turns have to go before the models can answer.
async function tooMany(models, messages, settings, signal) {
  if (messages.filter((one) => one.role === "user").length < 2) return 0;
  const wanted = { models: [...new Set(models)], messages };
  if (settings.max_tokens) wanted.max_tokens = settings.max_tokens;
  return (await post("/page/fit", wanted, signal)).dropped;
}

function sampling() {
  if (!$("settings-form").checkValidity()) {
    openSettings(true);
    $("settings-form").reportValidity();
    return null;
  }
  const set = {};
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) if ($(name).value !== "") set[name] = Number($(name).value);
  return set;
}

const chosen = () => (both ? [0, 1] : [0]).map((i) => $(`model-${i}`).value);

async function ask(text, at = turns.length) {
  const settings = sampling();
  if (running || settings === null) return;
  if (at > 0) turns[at - 1].went = wentWith(turns[at - 1]);
  const answers = chosen().map((model) => ({ model, text: "", usage: null, first: null, took: 0, pieces: 0, finish: "", settings }));
  turns.splice(at, turns.length, { text, system: clean($("system").value), answers });
  running = new AbortController();
  draw();
  enable();
  say("Answering …");
  scrollTo(0, document.body.scrollHeight);
  const seen = new Array(answers.length).fill(0), stop = running.signal;
  let fitting = null;
  try {
    turns[at].dropped = await tooMany(chosen(), asked(at), settings, stop);
    if (turns[at].dropped) follow(draw);
  } catch (error) {
    fitting = error;
  }
  const messages = asked(at);
  await Promise.all(answers.map(async (one, i) => {
    const article = $("turns").lastElementChild.querySelectorAll(".answer")[i];
    const grown = () => {
      follow(() => fill(article, one));
      if (answers.length === 1) seen[i] = speak(one.text, seen[i], false);
    };
    try {
      if (fitting) throw fitting;
      await answer({ model: one.model, messages, ...settings }, one, stop, grown);
    } catch (error) {
      if (error.name === "AbortError") one.finish = "stopped";
      else one.error = error.message;
      if (error.status === 401) showKey("The server wants its key again.");
    }
    follow(() => fill(article, one));
    speak(answers.length > 1 ? `${one.model}: ${one.text}` : one.text, seen[i], true);
  }));
  const stopped = running.signal.aborted;
  running = null;
  save();
  follow(draw);
  enable();
  say(stopped && !answers.some((one) => one.error) ? "Stopped." : "");
  $("message").focus({ preventScroll: true });
}

// New text is told to screen readers by the sentence, not by the token.
function speak(text, from, all) {
  const until = all ? text.length : from + text.slice(from).search(/[.!?。！？\n][^.!?。！？\n]*$/) + 1;
  if (until <= from) return from;
  const words = text.slice(from, until).trim();
  if (words) $("spoken").append(make("p", words));
  while ($("spoken").children.length > 20) $("spoken").firstChild.remove();
  return until;
}

// Stay at the end where the reader is there, and nowhere else.
function follow(change) {
  const end = innerHeight + scrollY >= document.documentElement.scrollHeight - 60;
  change();
  if (end) scrollTo(0, document.documentElement.scrollHeight);
}

// -- drawing

function numbers(one) {
  const parts = [];
  if (one.usage) {
    const { prompt_tokens: read, completion_tokens: written } = one.usage;
    parts.push(`${read} tokens read, ${written} written`);
    // the first token comes with the reading of the prompt; an answer in one piece has no pace but the whole
    const paced = one.pieces > 1 ? (written - 1) / (one.took - one.first) : written / one.took;
    if (one.took > 0 && written > 1 && isFinite(paced)) parts.push(`${(1000 * paced).toFixed(1)} tokens/s`);
  }
  if (one.first !== null) parts.push(`first after ${(one.first / 1000).toFixed(2)} s`);
  if (one.finish === "length") parts.push("cut at the longest answer");
  if (one.finish === "stopped") parts.push(`stopped after ${(one.took / 1000).toFixed(1)} s`);
  return parts.join(" · ");
}

function fill(article, one) {
  article.querySelector(".said").textContent = one.text;
  article.classList.toggle("growing", Boolean(running && !one.finish && !one.error));
  article.querySelector(".numbers").textContent = numbers(one);
  article.querySelector(".error").textContent = one.error ? `Not answered: ${one.error}` : "";
}

function drawAnswer(turn, at, i) {
  const one = turn.answers[i], two = turn.answers.length > 1;
  const article = make("article", undefined, "answer");
  article.setAttribute("aria-label", `Answer of ${one.model}`);
  const title = make("h2", one.model);
  if (two && turn.went === i) title.append(make("span", "goes on with this one", "went"));
  article.append(title, make("div", undefined, "said"), make("p", undefined, "error alert"));
  for (const [name, words] of [["sources", "Sources"], ["details", "What the method tells"]]) {
    if (!one[name]) continue;
    const details = make("details");
    details.append(make("summary", words), make("pre", JSON.stringify(one[name], null, 2)));
    article.append(details);
  }
  const row = make("div", undefined, "tools");
  if (!running && feedback && one.text && !one.error) {
    const thumb = (score, words) => {
      const made = button("", (it) => judge(it, at, [i], "thumbs", [score]), score ? "plain thumb" : "plain thumb down", one.thumb === score);
      made.append(thumbSign());
      made.setAttribute("aria-label", words);
      made.title = words;
      return made;
    };
    row.append(thumb(1, "Good answer"), thumb(0, "Bad answer"));
    const [a, b] = turn.answers;
    if (two && a.text && b.text && !a.error && !b.error && (a.text !== b.text || a.model !== b.model)) {
      row.append(button("This one is better", (it) => judge(it, at, [0, 1], "comparison", i ? [0, 1] : [1, 0]), "", turn.better === i));
    }
  }
  row.append(make("span", undefined, "numbers"));
  article.append(row);
  article.classList.toggle("better", turn.better === i);
  fill(article, one);
  return article;
}

// The number of the turn with which the last question's conversation begins.
function firstKept(dropped) {
  const sent = [...spoken(turns.length - 1), turns[turns.length - 1]];
  return turns.indexOf(sent[dropped]);
}

function drawTurn(turn, at) {
  const li = make("li");
  const dropped = turns.length ? turns[turns.length - 1].dropped : 0;
  if (dropped && firstKept(dropped) === at) li.append(make("p", "What is above no longer fits the model's context and is not sent any more.", "dropped"));
  const asking = make("div", turn.text, "asked");
  asking.setAttribute("role", "group");
  asking.setAttribute("aria-label", "You");
  const answers = make("div", undefined, turn.answers.length > 1 ? "answers two" : "answers");
  answers.append(...turn.answers.map((_, i) => drawAnswer(turn, at, i)));
  li.append(asking, answers);
  if (at === turns.length - 1 && !running) {
    const again = make("div", undefined, "again");
    again.append(button("Answer again", () => ask(turn.text, at), "plain"));
    li.append(again);
  }
  return li;
}

function draw() {
  $("empty").hidden = turns.length > 0;
  $("turns").replaceChildren(...turns.map(drawTurn));
  $("turns").classList.toggle("wide", turns.some((turn) => turn.answers.length > 1));
}

function enable() {
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
  for (const id of ["new", "both", "model-0", "model-1"]) $(id).disabled = Boolean(running);
  $("second").hidden = !both;
  $("both").setAttribute("aria-pressed", String(both));
}

function openSettings(open) {
  $("settings").hidden = !open;
  $("open-settings").setAttribute("aria-expanded", String(open));
}

// -- judgements: pressed once they are stored, taken back by pressing again

async function judge(pressed, at, which, kind, scores) {
  const turn = turns[at], one = turn.answers[which[0]];
  const now = kind === "thumbs" ? scores[0] : scores.indexOf(1);
  const back = (kind === "thumbs" ? one.thumb : turn.better) === now;
  const name = pressed.getAttribute("aria-label") || pressed.textContent;
  const answers = which.map((i) => ({ model: turn.answers[i].model, text: turn.answers[i].text, settings: turn.answers[i].settings }));
  pressed.disabled = true;
  try {
    const labeller = $("labeller").value.trim() || "chat";
    // whoever gave it takes it back, also where the name was changed since
    const by = back ? (kind === "thumbs" ? one.thumbBy : turn.betterBy) || labeller : labeller;
    await post("/page/feedback", { labeller: by, messages: asked(at), answers, kind, scores: back ? null : scores });
    if (kind === "thumbs") [one.thumb, one.thumbBy] = back ? [] : [now, by];
    else [turn.better, turn.betterBy] = back ? [] : [now, by];
    save();
    say(back ? "Taken back." : "Stored.");
    if (turns[at] !== turn) return; // it was answered again meanwhile, or is no longer shown
    const place = [...pressed.closest(".tools").children].indexOf(pressed), answered = $("turns").children[at];
    const i = [...answered.querySelectorAll(".answer")].indexOf(pressed.closest(".answer"));
    const drawn = drawTurn(turn, at);
    answered.replaceWith(drawn);
    drawn.querySelectorAll(".tools")[i].children[place]?.focus({ preventScroll: true });
  } catch (error) {
    pressed.disabled = false;
    if (error.status === 401) showKey("The server wants its key again.");
    say(`Not ${back ? "taken back" : "stored"} (${name}): ${error.message}`, true);
  }
}

// -- the prompt

async function showPrompt() {
  const draft = clean($("message").value), last = turns.length - 1;
  if (!draft.trim() && last < 0) { say("Write a message first: the prompt is shown with it."); return; }
  const settings = sampling();
  if (settings === null) return;
  $("prompts").replaceChildren(make("p", "…", "quiet"));
  $("prompt").showModal();
  let messages = draft.trim() ? conversation(turns.length, clean($("system").value), draft) : asked(last);
  if (draft.trim()) {
    // what is wrong here is said below by each model
    const dropped = await tooMany(chosen(), messages, settings).catch(() => 0);
    messages = conversation(turns.length, clean($("system").value), draft, dropped);
  }
  const drawn = await Promise.all([...new Set(chosen())].map(async (model) => {
    const part = make("section");
    try {
      const found = await post("/page/prompt", { model, messages });
      const soft = found.soft_tokens ? `, behind ${found.soft_tokens} trained soft tokens that are no words` : "";
      const passes = found.passes === "several" ? "; the method takes several passes, this is what the first begins with" : "";
      part.append(make("h3", model), make("p", `${found.tokens} tokens${soft}${passes}`, "quiet"), make("pre", found.text));
    } catch (error) {
      part.append(make("h3", model), make("p", error.message, "alert"));
    }
    return part;
  }));
  $("prompts").replaceChildren(...drawn);
}

// -- beginning

function showKey(words) {
  setKey(null);
  for (const id of ["models", "nav", "composer", "empty", "settings"]) $(id).hidden = true;
  $("turns").replaceChildren();
  $("key-section").hidden = false;
  $("key-wrong").textContent = words;
  $("key").focus();
}

async function begin(wrong = "") {
  let found, about;
  try {
    [found, about] = await Promise.all([get("/v1/models"), get("/page/settings")]);
  } catch (error) {
    if (error instanceof Refused && error.status === 401) { showKey(wrong); return; }
    $("key-section").hidden = true;
    $("empty").hidden = false;
    $("about").textContent = `This page cannot begin: ${error.message}.`;
    setTimeout(begin, 3000);
    return;
  }
  const answering = found.data.filter((one) => one.method !== "embeddings");
  models = answering.map((one) => one.id);
  feedback = about.feedback;
  for (const id of ["model-0", "model-1"]) {
    $(id).replaceChildren(...models.map((name) => { const made = make("option", name); made.value = name; return made; }));
  }
  $("model-1").value = models[1] || models[0];
  $("max_tokens").max = about.max_tokens;
  $("max_tokens").placeholder = about.max_tokens;
  $("labeller-field").hidden = !feedback;
  $("about").textContent = answering.map((one) => `${one.id}: ${one.method} on ${one.base}`).join("\n");
  $("key-section").hidden = true;
  for (const id of ["models", "nav", "composer"]) $(id).hidden = false;
  restore();
  draw();
  enable();
  grow();
  scrollTo(0, document.body.scrollHeight);
  $("message").focus({ preventScroll: true });
}

function grow() {
  $("message").style.height = "auto";
  $("message").style.height = `${Math.min($("message").scrollHeight + 2, innerHeight / 3)}px`;
}

function send() {
  const text = clean($("message").value);
  if (running || !text.trim()) return;
  if (sampling() === null) return;
  $("message").value = "";
  grow();
  ask(text);
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("key").value);
  $("key").value = "";
  begin("That is not the key.");
});
$("ask").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("settings-form").addEventListener("submit", (event) => event.preventDefault());
$("message").addEventListener("keydown", (event) => {
  const touch = matchMedia("(hover: none) and (pointer: coarse)").matches; // there, Enter is for lines
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch) return;
  event.preventDefault();
  send();
});
$("message").addEventListener("input", grow);
$("stop").addEventListener("click", () => running && running.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !$("prompt").open) running.abort();
});
$("both").addEventListener("click", () => { both = !both; enable(); save(); });
$("open-settings").addEventListener("click", () => openSettings($("settings").hidden));
$("open-prompt").addEventListener("click", showPrompt);
$("prompt-close").addEventListener("click", () => $("prompt").close());
$("new").addEventListener("click", () => {
  const before = turns;
  turns = [];
  save();
  draw();
  say(before.length ? "A new conversation. " : "");
  if (before.length) $("status").append(button("Bring the last one back", () => { turns = before; save(); draw(); say(""); }, "plain"));
  $("message").focus();
});
for (const id of [...FIELDS, "model-0", "model-1"]) $(id).addEventListener("change", save);
addEventListener("pagehide", () => { if (models.length) save(); });
begin();
