// The live report: asks what the folder says and changes what is different, so that nothing flickers and nothing that is
// being read moves. Texts of models and users are put in by textContent alone; plots come from the server as SVG.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const BUSY = 1000, IDLE = 4000, UNSEEN = 15000;
  const KINDS = { comparison: "Kamerton comparison", pretraining: "Kamerton pretraining" };
  const PHASES = { empty: "nothing is here yet", running: "running", finished: "finished", interrupted: "not finished" };
  const STATES = { waiting: "waiting", done: "done", failed: "failed", stopped: "stopped", interrupted: "interrupted" };
  const methods = new Map(), cells = new Map();
  let timer = 0, asking = false, drawn = "", answered = null, answers = null, ended = "", lastSeen = null;

  // -- elements

  function make(parent, tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }
  function put(node, text) { if (node.textContent !== text) node.textContent = text; }
  function show(node, on) { if (node.hidden === on) node.hidden = !on; }
  function classes(node, name) { if (node.className !== name) node.className = name; }

  // -- numbers for people

  const number = (value) => Math.round(value).toLocaleString("en");
  const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
  function duration(seconds) {
    const s = Math.max(0, Math.round(seconds));
    if (s < 60) return `${s}\u00a0s`;
    if (s < 3600) return `${Math.floor(s / 60)}\u00a0min ${s % 60}\u00a0s`;
    return `${Math.floor(s / 3600)}\u00a0h ${Math.floor((s % 3600) / 60)}\u00a0min`;
  }
  const percent = (share) => `${Math.round(100 * share)}%`;

  // -- one cell

  function stateOf(cell) { return cell.state === "running" ? cell.phase : STATES[cell.state]; }

  function words(cell, method) {
    if (cell.state === "running" || cell.state === "interrupted") {
      const parts = [];
      if (cell.phase !== "training") parts.push(cell.stage);
      if (cell.steps) parts.push(`step ${number(cell.step)} of ${number(cell.steps)}`);
      if (cell.text) parts.push(cell.text);
      return (cell.state === "interrupted" ? "stopped there: " : "") + parts.join(" · ");
    }
    if (cell.state === "failed") return cell.error;
    if (cell.state === "stopped") return `by the race: clearly behind ${method.stopped.leader} on validation`;
    if (cell.state === "waiting" && cell.paused_at) return `paused by the race at ${percent(cell.paused_at)} of its training`;
    if (typeof cell.same_as === "number") return `as seed ${cell.same_as}: the seed changes nothing`;
    return "";
  }

  function spent(cell, budget) {
    if (!cell.tokens) return "";
    return budget.tokens ? `${number(cell.tokens)} of ${number(budget.tokens)} tokens` : plural(cell.tokens, "token");
  }

  function took(cell, now) {
    if (cell.state === "running") return duration(now - cell.started);
    return cell.state === "done" && typeof cell.same_as !== "number" ? duration(cell.seconds) : "";
  }

  function newCell(list, label, seed) {
    const row = make(list, "li");
    const parts = { row, seed: make(row, "span", "seed", seed === null ? "" : `seed ${seed}`), state: make(row, "span", "state") };
    const middle = make(row, "div", "middle");
    parts.bar = make(middle, "div", "bar");
    parts.bar.setAttribute("role", "progressbar");
    parts.bar.setAttribute("aria-valuemin", "0");
    parts.bar.setAttribute("aria-valuemax", "100");
    parts.fill = make(parts.bar, "span");
    parts.what = make(middle, "div", "what");
    parts.spent = make(row, "span", "spent");
    parts.took = make(row, "span", "took");
    parts.score = make(row, "span", "score");
    parts.more = make(row, "button", "plain", "Record");
    parts.more.type = "button";
    parts.more.setAttribute("aria-label", `Record of ${label}, seed ${seed}`);
    parts.more.addEventListener("click", () => about(label, seed));
    return parts;
  }

  function showCell(parts, cell, method, told) {
    const running = cell.state === "running" || cell.state === "interrupted", share = running ? cell.share : 0;
    classes(parts.row, `cell ${cell.state}`);
    put(parts.state, stateOf(cell));
    show(parts.bar, running);
    const width = percent(share);
    if (parts.fill.style.width !== width) {
      parts.fill.style.width = width;
      parts.bar.setAttribute("aria-valuenow", String(Math.round(100 * share)));
      parts.bar.setAttribute("aria-label", `${method.label}: ${cell.stage || ""}`);
    }
    put(parts.what, words(cell, method));
    put(parts.spent, spent(cell, told.budget));
    put(parts.took, took(cell, told.now));
    put(parts.score, cell.score || "");
    show(parts.more, told.kind === "comparison" && (cell.state === "done" || cell.state === "failed"));
  }

  async function about(label, seed) {
    const asked = new URLSearchParams({ label, seed });
    const response = await fetch(`/api/cell?${asked}`).catch(() => null);
    const record = response && response.ok ? await response.json() : { error: "the server did not give it" };
    const trace = record.traceback ? `${record.traceback}\n` : "";
    delete record.traceback;
    put($("about-title"), `${label}, seed ${seed}`);
    put($("about-text"), trace + JSON.stringify(record, null, 1));
    $("about").showModal();
  }

  // -- all of them

  function showMethods(told) {
    const there = new Set();
    for (const method of told.methods) {
      let box = methods.get(method.label);
      if (!box) {
        const section = make($("methods"), "section", "method");
        const title = make(section, "h3", "", method.label);
        if (method.summary) make(title, "span", "soft", method.summary);
        box = { section, tag: make(title, "span", "tag"), list: make(section, "ul", "cells") };
        methods.set(method.label, box);
      }
      there.add(method.label);
      show(box.tag, Boolean(method.stopped));
      if (method.stopped) {
        put(box.tag, `stopped by the race ${method.stopped.share < 1 ? `at ${percent(method.stopped.share)} of training, seed ${method.stopped.seed}` : `after ${plural(method.stopped.seeds, "seed")}`}`);
      }
      for (const cell of method.cells) {
        const key = JSON.stringify([method.label, cell.seed]);
        there.add(key);
        if (!cells.has(key)) cells.set(key, newCell(box.list, method.label, cell.seed));
        showCell(cells.get(key), cell, method, told);
      }
    }
    for (const [key, parts] of cells) if (!there.has(key)) { parts.row.remove(); cells.delete(key); }
    for (const [label, box] of methods) if (!there.has(label)) { box.section.remove(); methods.delete(label); }
    show($("cells"), told.methods.length > 0);
    show($("cells-title"), told.kind === "comparison");
  }

  function showStrip(told) {
    const all = told.methods.flatMap((method) => method.cells.map((cell) => ({ ...cell, label: method.label })));
    const strip = $("strip"), over = all.filter((cell) => ["done", "failed", "stopped"].includes(cell.state)).length;
    show(strip, all.length > 1);
    while (strip.children.length > all.length) strip.lastChild.remove();
    while (strip.children.length < all.length) make(make(strip, "span"), "i");
    all.forEach((cell, i) => {
      const part = strip.children[i];
      classes(part, cell.state);
      const title = `${cell.label}, seed ${cell.seed}: ${stateOf(cell)}`;
      if (part.title !== title) part.title = title;
      part.firstChild.style.width = cell.state === "running" ? percent(cell.share) : "0%";
    });
    strip.setAttribute("aria-valuemax", String(all.length));
    strip.setAttribute("aria-valuenow", String(over));
  }

  function summary(told) {
    const c = told.counts, total = told.methods.reduce((sum, method) => sum + method.cells.length, 0);
    if (told.phase === "empty") return "Nothing is in this folder yet. The page shows a comparison as soon as one begins here.";
    if (!total) return told.said[0] || "It begins.";
    if (told.kind === "pretraining") return { running: "It is being trained.", finished: "It is finished." }[told.phase] || "It stopped before its end; the same command goes on from its last checkpoint.";
    const parts = [`${number(c.done)} of ${plural(total, "cell")} done`];
    for (const [state, word] of [["running", "running"], ["failed", "failed"], ["stopped", "stopped by the race"], ["interrupted", "interrupted"], ["waiting", told.phase === "running" ? "waiting" : "not run"]]) {
      if (c[state]) parts.push(`${number(c[state])} ${word}`);
    }
    const end = told.phase === "interrupted" ? ". It does not run now: it was stopped before its end. The same command goes on where this one stopped." : ".";
    const said = told.phase === "running" && !c.running && told.said[0] ? ` Now: ${told.said[0]}.` : "";
    return parts.join(", ") + end + said;
  }

  function spending(told) {
    const all = told.methods.flatMap((method) => method.cells), parts = [];
    const limits = Object.entries(told.budget).map(([what, most]) => `${most.toLocaleString("en")} ${what}`);
    if (told.phase === "running" && told.started) parts.push(`Running for ${duration(told.now - told.started)}`);
    const tokens = all.reduce((sum, cell) => sum + (cell.tokens || 0), 0);
    if (tokens) parts.push(`${number(tokens)} tokens trained`);
    if (limits.length) parts.push(`budget${told.kind === "comparison" ? " of a cell" : ""}: ${limits.join(", ")}`);
    return parts.join(" · ");
  }

  function showVerdict(told) {
    const verdict = told.verdict;
    show($("verdict"), Boolean(verdict));
    if (!verdict) return;
    const final = told.phase === "finished";
    put($("far"), final ? (told.kind === "comparison" ? "Verdict" : "") : `So far, with ${plural(verdict.cells || 0, "cell")}; it may still change`);
    put($("sentence"), verdict.sentences[0] || "");
    put($("more"), verdict.sentences.slice(1).join(" "));
    show($("scores"), verdict.rows.length > 0);
    put($("metric"), verdict.metric);
    const key = JSON.stringify(verdict.rows), body = $("scores").tBodies[0];
    if (body.dataset.key === key) return;
    body.dataset.key = key;
    body.textContent = "";
    for (const row of verdict.rows) {
      const line = make(body, "tr", row.leading ? "leading" : "");
      make(line, "td", "num", String(row.rank));
      const name = make(line, "th", "sticky", row.label);
      name.scope = "row";
      make(line, "td", "num strong", row.score);
      make(line, "td", "num", row.interval);
      make(line, "td", "num", String(row.seeds));
    }
  }

  function showHead(told) {
    const c = told.counts, total = told.methods.reduce((sum, method) => sum + method.cells.length, 0);
    const phase = told.phase === "finished" && c.failed ? `finished, ${plural(c.failed, "cell")} failed` : PHASES[told.phase];
    put($("kind"), KINDS[told.kind]);
    put($("name"), told.name);
    put($("phase"), phase);
    classes($("phase"), `phase ${told.phase}`);
    show($("phase"), true);
    const title = `${told.phase === "running" && total > 1 ? `${c.done || 0}/${total} · ` : ""}${told.name} · ${phase}`;
    if (document.title !== title) document.title = title;
    const facts = [];
    if (told.task) facts.push(`Task ${told.task}`);
    if (told.base) facts.push(`base ${told.base}`);
    if (told.sizes) facts.push(`${number(told.sizes.train)} training, ${number(told.sizes.validation)} validation, ${number(told.sizes.test)} test`);
    if (told.metric) facts.push(`decided by ${told.metric}`);
    put($("facts"), facts.join(" · "));
    show($("command"), told.phase === "interrupted" && Boolean(told.command));
    put($("command"), told.command || "");
  }

  // -- what costs more to ask for

  async function showCurves() {
    const response = await fetch("/api/curves");
    if (!response.ok) return;
    const found = await response.json(), box = $("panels");
    show($("curves"), Object.keys(found).length > 0);
    const figures = new Map(Array.from(box.children, (figure) => [figure.dataset.label, figure]));
    for (const [label, svg] of Object.entries(found)) {
      const figure = figures.get(label) || make(box, "figure");
      figures.delete(label);
      figure.dataset.label = label;
      if (figure.kamertonDrawn !== svg) { figure.innerHTML = svg; figure.kamertonDrawn = svg; }
    }
    for (const figure of figures.values()) figure.remove();
  }

  async function showAnswers(version) {
    const response = await fetch("/api/answers");
    const data = response.ok ? await response.json() : null;
    if (!data || !data.items.length) return;
    show($("side"), true);
    if (answers) answers.update(data); else answers = window.kamertonAnswers(data);
    answered = version;
  }

  // -- asking

  async function look() {
    if (asking) return;
    asking = true;
    let wait = IDLE;
    try {
      const response = await fetch("/api/state", { cache: "no-store" });
      if (!response.ok) throw new Error(response.status === 401 ? "the server wants its key: load the page again" : `the server said ${response.status}`);
      const told = await response.json();
      lastSeen = new Date();
      show($("lost"), Boolean(told.error));
      put($("lost"), told.error);
      showHead(told);
      put($("summary"), summary(told));
      put($("spent"), spending(told));
      showStrip(told);
      showMethods(told);
      showVerdict(told);
      const now = JSON.stringify(told.counts) + told.phase + told.answers;
      if (told.phase === "running" || now !== ended) await showCurves();
      ended = now;
      if (told.answers && told.answers !== answered) await showAnswers(told.answers);
      if (told.phase === "running" || told.phase === "empty") wait = BUSY;
    } catch (error) {
      const since = lastSeen ? ` What is shown is from ${lastSeen.toLocaleTimeString()}.` : "";
      const why = error instanceof TypeError ? "The server does not answer." : `${error.message}.`;
      put($("lost"), `${why}${since} Trying again.`);
      show($("lost"), true);
    }
    asking = false;
    clearTimeout(timer);
    timer = setTimeout(look, document.hidden ? UNSEEN : wait);
  }

  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  look();
})();
