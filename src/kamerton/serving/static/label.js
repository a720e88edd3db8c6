// The labelling page. Texts of models and users are put in by textContent alone. A label is told as saved only after the
// server said so, which it does after the commit; until then it is sent again and again, and the server knows it by its
// token, so that it counts once.
import { $, make, say } from "./page.js";

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const kept = {
  get: (name) => { try { return localStorage.getItem(name); } catch { return null; } },
  set: (name, value) => { try { localStorage.setItem(name, value); } catch { /* then it is asked again */ } },
};
let labeller = null, state = null, busy = false, order = [], seen = 0, since = 0, timer = 0, answering = 0;
let shortcuts = kept.get("kamerton-keys") !== "off";

// -- elements

function button(text, key, act, className) {
  const made = make("button", text, className);
  if (key) made.append(" ", make("kbd", key));
  made.addEventListener("click", act);
  return made;
}

function show(name) {
  for (const id of ["enter", "question", "end"]) $(id).hidden = id !== name;
  $("verdict").hidden = name === "enter" || (name === "end" && !state.last);
  for (const id of ["progress", "who", "help"]) $(id).hidden = name === "enter";
  $("choices").hidden = $("skip").hidden = name !== "question";
}

// -- the server

async function post(path, body) {
  const response = await fetch(path, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  });
  // an answer that breaks off is none: it is asked for again
  if (response.ok) return response.json();
  const found = await response.json().catch(() => ({}));
  const error = new Error((found.error && found.error.message) || `the server said ${response.status}`);
  error.status = response.status;
  throw error;
}

// Sent until the server answers; what it refuses is not sent again.
async function send(path, body) {
  busy = true;
  enable();
  for (let pause = 250; ; pause = Math.min(2 * pause, 4000)) {
    try {
      return await post(path, body);
    } catch (error) {
      if (error.status && error.status < 500) throw error;
      say(`Not saved yet: ${error.status ? error.message : "the server does not answer"}. Trying again …`, true);
      await new Promise((done) => setTimeout(done, pause));
    }
  }
}

async function change(path, body, told) {
  if (busy) return;
  try {
    const found = await send(path, body);
    busy = false;
    draw(found);
    say(told(found));
  } catch (error) {
    busy = false;
    if (error.status === 401) { location.reload(); return; }
    if (error.status === 409 && labeller) {
      // another tab was faster: what is stored is right
      draw(await send("/api/state", { labeller }));
      busy = false;
      enable();
    } else {
      enable();
    }
    say(`Not saved: ${error.message}`, true);
  }
}

const token = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
const counted = () => `${state.done} of ${state.total}` + (state.skipped ? `, ${state.skipped} skipped` : "");

function label(scores, words) {
  if (busy || !state || !state.question) return;
  const seconds = Math.round(spent() / 10) / 100;
  const body = { labeller, question: state.question.id, scores, seconds, token: token() };
  change("/api/labels", body, (found) => `Saved: ${words}. ${found.question ? counted() : ""}`);
}

function undo() {
  if (state && state.last) change("/api/undo", { labeller, label: state.last }, () => "Undone. Here it is again.");
  else say("There is nothing to undo.");
}

// -- time that a question was looked at

function spent() {
  return seen + (document.hidden ? 0 : performance.now() - since);
}
document.addEventListener("visibilitychange", () => {
  if (document.hidden) seen += performance.now() - since;
  since = performance.now();
});

// -- drawing

const WHO = { system: "System", user: "User", assistant: "Assistant" };
const ASK = {
  comparison: "Which answer is better?", ranking: "Put the answers in order, best first",
  rating: "How good is this answer?", thumbs: "Is this a good answer?",
};

function draw(found) {
  const moved = !state || !state.question || !found.question || state.question.id !== found.question.id;
  state = found;
  clearTimeout(timer);
  const all = Math.max(state.total, 1);
  $("count").textContent = counted();
  $("bar").firstElementChild.style.width = `${100 * (state.done + state.skipped) / all}%`;
  $("bar").setAttribute("aria-valuemax", state.total);
  $("bar").setAttribute("aria-valuenow", state.done + state.skipped);
  $("who").textContent = state.labeller;
  if (state.question) {
    if (moved) drawQuestion();
    show("question");
  } else {
    drawEnd();
    show("end");
  }
  enable();
  if (moved) {
    scrollTo(0, 0);
    $(state.question ? "what" : "end-title").focus({ preventScroll: true });
  }
}

function drawQuestion() {
  const { prompt, answers } = state.question;
  order = []; seen = 0; since = performance.now(); answering = answers.length;
  $("what").textContent = ASK[state.kind];
  $("turns").replaceChildren(...prompt.map((turn) => {
    const li = make("li", undefined, turn.role);
    li.append(make("div", WHO[turn.role], "who"), make("div", turn.content, "said"));
    return li;
  }));
  $("answers").classList.toggle("one", answers.length === 1);
  $("answers").replaceChildren(...answers.map((text, i) => {
    const article = make("article", undefined, "answer");
    const title = make("h2");
    title.append(make("span", answers.length > 1 ? `Answer ${LETTERS[i] || i + 1}` : "Answer"));
    if (state.kind === "ranking") title.append(button("Next best", String(i + 1), () => pick(i)));
    article.append(title, make("div", text, "said"));
    article.setAttribute("aria-label", title.firstChild.textContent);
    return article;
  }));
  drawChoices();
}

function drawChoices() {
  const row = $("choices");
  row.className = `choices ${state.kind}`;
  row.replaceChildren(...choices().map(({ text, key, act, className }) => button(text, key, act, className)));
}

// What can be said, with its key; the list of shortcuts is made from the same.
function choices() {
  if (state.kind === "comparison") {
    return [
      { text: "A is better", key: "1", also: "arrowleft", act: () => label([1, 0], "A is better"), className: "side a" },
      { text: "Tie", key: "3", also: "t", act: () => label([0.5, 0.5], "a tie") },
      { text: "Both bad", key: "4", also: "b", act: () => label([0, 0], "both bad") },
      { text: "B is better", key: "2", also: "arrowright", act: () => label([0, 1], "B is better"), className: "side b" },
    ];
  }
  if (state.kind === "thumbs") {
    return [
      { text: "Good", key: "1", also: "g", act: () => label([1], "good"), className: "side" },
      { text: "Bad", key: "2", also: "b", act: () => label([0], "bad") },
    ];
  }
  if (state.kind === "rating") {
    return Array.from({ length: 10 }, (_, i) => (
      { text: String(i + 1), key: i === 9 ? "0" : i > 8 ? "" : String(i + 1), act: () => label([i + 1], `${i + 1} of 10`) }
    ));
  }
  return [
    { text: "Save this order", key: "Enter", also: "enter", act: rank, className: "side" },
    { text: "Take one back", key: "Backspace", also: "backspace", act: takeBack },
  ];
}

function pick(i) {
  if (busy || order.includes(i) || i >= answering) return;
  order.push(i);
  if (order.length === answering - 1) order.push([...Array(answering).keys()].find((j) => !order.includes(j)));
  drawRanks();
  const text = order.map((j) => LETTERS[j] || j + 1).join(", then ");
  say(order.length === answering ? `${text}. Save with Enter.` : text);
}

function takeBack() {
  if (order.length === answering) order.pop(); // the last one came by itself
  order.pop();
  drawRanks();
  say(order.map((j) => LETTERS[j] || j + 1).join(", then "));
}

function rank() {
  if (order.length < answering) { say("Choose the next best answer first.", true); return; }
  const scores = Array(answering);
  order.forEach((i, place) => { scores[i] = answering - 1 - place; });
  label(scores, order.map((i) => LETTERS[i] || i + 1).join(", then "));
}

function drawRanks() {
  [...$("answers").children].forEach((article, i) => {
    const place = order.indexOf(i);
    article.classList.toggle("picked", place >= 0);
    article.querySelector(".rank")?.remove();
    article.querySelector("button").hidden = place >= 0;
    if (place >= 0) article.querySelector("h2").append(make("span", `Place ${place + 1}`, "rank"));
  });
  enable();
}

function enable() {
  for (const one of $("choices").children) one.disabled = busy;
  $("skip").disabled = busy;
  $("undo").disabled = busy || !state || !state.last;
  if (state && state.kind === "ranking" && state.question && $("choices").children.length) {
    $("choices").children[0].disabled = busy || order.length < answering;
    $("choices").children[1].disabled = busy || !order.length;
  }
}

function drawEnd() {
  const live = state.sampling;
  const waiting = live && !live.error && live.done < live.total;
  $("again").hidden = waiting || !state.skipped;
  if (waiting) {
    $("end-title").textContent = "Answers are being sampled …";
    $("end-text").textContent = `${live.done} of ${live.total} prompts are answered. The next question comes by itself.`;
    timer = setTimeout(poll, 1500);
  } else if (live && live.error) {
    $("end-title").textContent = "Sampling has stopped";
    $("end-text").textContent = live.error;
  } else {
    $("end-title").textContent = state.total ? "That is all. Thank you!" : "There is nothing to label";
    $("end-text").textContent = state.total
      ? `You labelled ${state.done} of ${state.total}` + (state.skipped ? ` and skipped ${state.skipped}.` : ".")
      : "The store has no answers that can be asked about in this way.";
  }
}

async function poll() {
  try {
    if (!busy) draw(await post("/api/state", { labeller }));
  } catch {
    timer = setTimeout(poll, 3000);
  }
}

// -- who and how

function enter(name) {
  labeller = name;
  change("/api/state", { labeller: name }, (found) => {
    labeller = found.labeller;
    kept.set("kamerton-labeller", labeller);
    return found.done ? `Welcome back, ${labeller}. ${counted()}` : "";
  });
}

$("name-form").addEventListener("submit", (event) => {
  event.preventDefault();
  enter($("name").value);
});
$("who").addEventListener("click", () => {
  if (busy) return;
  clearTimeout(timer);
  state = null;
  show("enter");
  $("name").value = labeller;
  $("name").select();
  say("");
});
$("skip").addEventListener("click", () => label(null, "skipped"));
$("undo").addEventListener("click", undo);
$("again").addEventListener("click", () => change("/api/skipped", { labeller }, () => "Here they are again."));

function help() {
  const rows = choices().filter((c) => c.key).map((c) => [[c.key, c.also], c.text]);
  if (state.kind === "ranking") rows.unshift([["1", "…"], "the next best answer"]);
  const names = { arrowleft: "←", arrowright: "→", enter: "", backspace: "" };
  $("key-list").replaceChildren(...[...rows, [["S"], "Skip"], [["U"], "Undo"], [["?"], "This list"]].flatMap(([keys, what]) => {
    const dt = make("dt");
    for (const key of keys) {
      const shown = key && (key in names ? names[key] : key.length === 1 ? key.toUpperCase() : key);
      if (shown) dt.append(make("kbd", shown), " ");
    }
    return [dt, make("dd", what)];
  }));
  $("keys").showModal();
}
$("help").addEventListener("click", help);
$("keys-close").addEventListener("click", () => $("keys").close());
$("keys-on").checked = shortcuts;
$("keys-on").addEventListener("change", () => {
  shortcuts = $("keys-on").checked;
  kept.set("kamerton-keys", shortcuts ? "on" : "off");
});

document.addEventListener("keydown", (event) => {
  if (!shortcuts || !state || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if ($("keys").open || event.target.matches("input, textarea, select")) return;
  const key = event.key.toLowerCase();
  const pressed = event.target.matches("button, a") && (key === "enter" || key === " ");
  if (pressed) return;
  if (key === "?") help();
  else if (key === "u") undo();
  else if (!state.question) return;
  else if (key === "s") label(null, "skipped");
  else if (state.kind === "ranking" && /^[1-9]$/.test(key)) pick(Number(key) - 1);
  else {
    const chosen = choices().find((c) => c.key === key || c.also === key);
    if (!chosen) return;
    chosen.act();
  }
  event.preventDefault();
});

addEventListener("beforeunload", (event) => { if (busy) event.preventDefault(); });

const name = kept.get("kamerton-labeller");
if (name) enter(name);
else show("enter");
