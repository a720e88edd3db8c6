// Light or dark as the system has it, until somebody chooses. Runs before anything is drawn.
"use strict";
(() => {
  const root = document.documentElement;
  let kept = null;
  try { kept = localStorage.getItem("kamerton-theme"); } catch { /* a browser may refuse to keep anything */ }
  if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
    if (!button) return;
    name();
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      try { localStorage.setItem("kamerton-theme", root.dataset.theme); } catch { /* then it lasts as long as the page */ }
      name();
    });
  });
})();
