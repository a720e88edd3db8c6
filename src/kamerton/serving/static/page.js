// What the pages' programs share. Texts are put in by textContent alone: what models and users write is never markup.

export const $ = (id) => document.getElementById(id);

export function make(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

export function say(text, alert = false) {
  $("status").textContent = text;
  $("status").classList.toggle("alert", alert);
}
