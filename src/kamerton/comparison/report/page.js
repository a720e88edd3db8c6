"use strict";
// Filters and pages the answers, switches the cost plots; the state is kept in the address after "#". Data that stand in
// the page are shown at once; a page that gets them later, and again, calls `kamertonAnswers(data)` and its `update`.
window.kamertonAnswers = function (data) {
  var form = document.getElementById("filters");
  var fields = ["filter", "method", "group", "seed", "size", "q"];
  var state = { filter: "all", method: "", group: "", seed: "", size: "10", q: "", hide: "", page: 1, cost: "" };
  var kept = fields.concat("hide", "cost");
  var ONE = /^(only-)?(right|wrong)$/; // filters that ask about one method
  var anchors = /^[a-z]+$/;

  // --- what a run says: one column of answers and scores for each method and seed
  function run(method, seed) {
    var mine = data.runs.filter(function (r) { return r.m === method; });
    for (var i = 0; i < mine.length; i++) if (mine[i].seeds.indexOf(seed) >= 0) return mine[i];
    return null;
  }
  function hidden() { return state.hide ? state.hide.split(",") : []; }
  function columns() { // of hidden methods: undefined; of those without a result for this seed: null
    var seed = Number(state.seed), without = hidden();
    return data.methods.map(function (label, m) { return without.indexOf(label) < 0 ? run(m, seed) : undefined; });
  }
  function norm(text) { return text.trim().toLowerCase().replace(/\s+/g, " "); }
  function score(column, i) {
    if (!column) return null;
    if (column.s) return column.s[i];
    var answer = norm(column.a[i]);
    return data.items[i].r.some(function (r) { return norm(r) === answer; }) ? 1 : 0;
  }

  function wanted(i, cols, needle) {
    var item = data.items[i];
    if (state.group && item.g !== state.group) return false;
    if (state.filter !== "all") {
      var right = 0, wrong = 0, seen = 0, mine = null, different = false, first = null;
      for (var m = 0; m < cols.length; m++) {
        var s = score(cols[m], i);
        if (s === null) continue;
        seen++;
        if (first === null) first = s; else if (Math.abs(s - first) > 1e-9) different = true;
        if (s >= 1) right++; else if (s <= 0) wrong++;
        if (data.methods[m] === state.method) mine = s;
      }
      if (state.filter === "disagree" && !different) return false;
      if (state.filter === "all-right" && right !== seen) return false;
      if (state.filter === "all-wrong" && right !== 0) return false;
      if (state.filter === "right" && !(mine !== null && mine >= 1)) return false;
      if (state.filter === "wrong" && !(mine !== null && mine < 1)) return false;
      if (state.filter === "only-right" && !(mine !== null && mine >= 1 && right === 1)) return false;
      if (state.filter === "only-wrong" && !(mine !== null && mine < 1 && right === seen - 1)) return false;
    }
    if (needle) {
      var text = item.id + "\n" + item.q + "\n" + item.r.join("\n");
      if (text.toLowerCase().indexOf(needle) >= 0) return true;
      return cols.some(function (c) { return c && c.a[i].toLowerCase().indexOf(needle) >= 0; });
    }
    return true;
  }

  // --- showing; text goes in as text, never as markup
  function add(parent, name, cls, text) {
    var node = document.createElement(name);
    if (cls) node.className = cls;
    if (text !== undefined) node.textContent = text;
    parent.appendChild(node);
    return node;
  }
  function long(parent, cls, text) {
    var node = add(parent, "div", cls, text);
    node.dir = "auto";
    if (text.length > 600) node.tabIndex = 0; // so that the keyboard can scroll it
    return node;
  }
  function card(i, cols) {
    var item = data.items[i], box = document.createElement("article");
    box.className = "card";
    add(box, "div", "meta", [item.id, item.g].filter(Boolean).join(" · "));
    var left = add(box, "div");
    (item.c || []).forEach(function (turn) { long(left, "question empty", turn[0] + ": " + turn[1]); });
    long(left, "question", item.q);
    var reference = add(left, "div", "reference");
    add(reference, "span", "label", item.r.length > 1 ? "References " : "Reference ");
    var bold = add(reference, "strong", "", item.r.join(" | "));
    bold.dir = "auto";
    var right = add(box, "div", "answers");
    cols.forEach(function (column, m) {
      if (column === undefined) return;
      var name = add(right, "div", "label", data.methods[m]);
      name.title = data.methods[m];
      var s = score(column, i);
      if (s === null) { add(right, "div", "mark part", ""); add(right, "div", "answer empty", "no result for this seed"); return; }
      var kind = s >= 1 ? "right" : s <= 0 ? "wrong" : "part";
      var mark = add(right, "div", "mark " + kind, s >= 1 ? "\u2713" : s <= 0 ? "\u2717" : s.toFixed(2));
      mark.setAttribute("aria-label", s >= 1 ? "right" : s <= 0 ? "wrong" : "score " + s.toFixed(2));
      mark.setAttribute("role", "img");
      if (column.a[i].trim()) long(right, "answer", column.a[i]); else add(right, "div", "answer empty", "(empty)");
      if (column.d && column.d[i]) {
        var how = add(right, "details", "how");
        add(how, "summary", "", "how it came about");
        long(how, "answer", column.d[i]);
      }
    });
    return box;
  }

  var found = [];
  function search() {
    var cols = columns(), needle = state.q.toLowerCase();
    found = [];
    for (var i = 0; i < data.items.length; i++) if (wanted(i, cols, needle)) found.push(i);
    return cols;
  }
  function show() {
    var cols = search();
    var size = Number(state.size), pages = Math.max(1, Math.ceil(found.length / size));
    state.page = Math.min(Math.max(1, state.page), pages);
    var cards = document.getElementById("cards");
    cards.textContent = "";
    found.slice((state.page - 1) * size, state.page * size).forEach(function (i) { cards.appendChild(card(i, cols)); });
    document.getElementById("count").textContent =
      found.length + " of " + data.items.length + " examples" + (data.left_out ? ". " + data.left_out : "");
    document.getElementById("where").textContent = "page " + state.page + " of " + pages;
    document.getElementById("previous").disabled = state.page <= 1;
    document.getElementById("next").disabled = state.page >= pages;
    form.elements.method.parentNode.hidden = !ONE.test(state.filter);
    var shown = data.methods.length - hidden().length, summary = document.querySelector("#shown summary");
    summary.textContent = "Methods shown: " + (shown === data.methods.length ? "all" : shown + " of " + data.methods.length);
  }

  // --- the address
  function read() {
    var hash = location.hash.slice(1);
    if (anchors.test(hash) || hash === "") return false; // a plain anchor of the page, or nothing
    var given = new URLSearchParams(hash);
    kept.forEach(function (key) { if (given.has(key)) state[key] = given.get(key); });
    state.page = Number(given.get("page")) || 1;
    return true;
  }
  function write() {
    var told = new URLSearchParams();
    kept.forEach(function (key) {
      if (state[key] && state[key] !== start[key] && (key !== "method" || ONE.test(state.filter))) told.set(key, state[key]);
    });
    if (state.page > 1) told.set("page", state.page);
    history.replaceState(null, "", told.toString() ? "#" + told : location.pathname + location.search);
  }
  function fill() {
    fields.forEach(function (key) {
      var field = form.elements[key];
      field.value = state[key];
      if (field.value !== String(state[key])) { state[key] = start[key]; field.value = start[key]; } // unknown in the address
    });
  }

  // --- cost plots
  function plot() {
    var figures = document.querySelectorAll("figure.quality");
    if (!figures.length) return;
    var keys = Array.prototype.map.call(figures, function (f) { return f.dataset.plot; });
    if (keys.indexOf(state.cost) < 0) state.cost = keys[0];
    figures.forEach(function (f) { f.hidden = f.dataset.plot !== state.cost; });
    document.querySelectorAll(".switch button").forEach(function (b) {
      b.setAttribute("aria-pressed", String(b.dataset.plot === state.cost));
    });
  }

  // --- start
  function options(name, values) {
    var field = form.elements[name];
    while (field.options.length && field.options[field.options.length - 1].value) field.remove(field.options.length - 1);
    values.forEach(function (value) { add(field, "option", "", value).value = value; });
  }
  function choices() {
    options("method", data.methods);
    options("group", data.groups);
    options("seed", data.seeds.map(String));
    form.elements.group.parentNode.hidden = !data.groups.length;
    form.elements.seed.parentNode.hidden = data.seeds.length < 2;
    var box = document.querySelector("#shown div"), without = hidden();
    document.getElementById("shown").hidden = data.methods.length < 2;
    box.textContent = "";
    data.methods.forEach(function (label) {
      var line = add(box, "label"), tick = add(line, "input");
      tick.type = "checkbox";
      tick.value = label;
      tick.checked = without.indexOf(label) < 0;
      line.appendChild(document.createTextNode(" " + label));
    });
    start.method = data.methods[0];
    start.seed = String(data.seeds[0]);
    var told = document.getElementById("system");
    told.textContent = "";
    if (data.system) {
      told = add(told, "details");
      add(told, "summary", "", "System message of all examples");
      add(told, "pre", "", data.system);
    }
  }
  var start = Object.assign({}, state);
  choices();
  state.method = start.method;
  state.seed = start.seed;
  var bar = document.querySelector(".switch");
  if (bar) bar.hidden = false;
  var linked = read();
  if (linked) choices();
  fill();
  plot();
  start.cost = (document.querySelector("figure.quality") || { dataset: {} }).dataset.plot || "";
  show();
  if (linked && /(^|&|#)(filter|group|seed|size|q|hide|page)=/.test(location.hash)) document.getElementById("answers").scrollIntoView();

  var waiting = 0;
  function changed() {
    fields.forEach(function (key) { state[key] = form.elements[key].value; });
    state.page = 1;
    show();
    write();
  }
  document.getElementById("shown").addEventListener("change", function () {
    var without = Array.prototype.filter.call(document.querySelectorAll("#shown input"), function (x) { return !x.checked; });
    state.hide = without.map(function (x) { return x.value; }).join(",");
    changed();
  });
  form.addEventListener("change", changed);
  form.addEventListener("submit", function (event) { event.preventDefault(); changed(); });
  form.elements.q.addEventListener("input", function () { clearTimeout(waiting); waiting = setTimeout(changed, 150); });
  function turn(step) {
    state.page += step;
    show();
    write();
    document.getElementById("answers").scrollIntoView();
  }
  document.getElementById("previous").addEventListener("click", function () { turn(-1); });
  document.getElementById("next").addEventListener("click", function () { turn(1); });
  document.querySelectorAll(".switch button").forEach(function (b) {
    b.addEventListener("click", function () { state.cost = b.dataset.plot; plot(); write(); });
  });
  window.addEventListener("hashchange", function () { if (read()) { choices(); fill(); plot(); show(); } });
  return { update: function (next) { data = next; choices(); fill(); show(); } };
};
(function () {
  var holder = document.getElementById("data");
  if (holder) window.kamertonAnswers(JSON.parse(holder.textContent));
})();
