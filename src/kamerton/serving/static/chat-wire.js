// What goes over the wire: requests with the key, errors as sentences, answers as streams of events.

let key = null;
try { key = sessionStorage.getItem("kamerton-key"); } catch { /* then it is asked for on every load */ }

export class Refused extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export function setKey(value) {
  key = value;
  try {
    if (value === null) sessionStorage.removeItem("kamerton-key");
    else sessionStorage.setItem("kamerton-key", value);
  } catch { /* kept for as long as the page is open */ }
}

async function request(path, body, signal) {
  const headers = body === undefined ? {} : { "content-type": "application/json" };
  // a header's letters are bytes: what is not ASCII goes as UTF-8
  if (key !== null) headers.authorization = "Bearer " + String.fromCharCode(...new TextEncoder().encode(key));
  let response;
  try {
    response = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("the server does not answer", 0);
  }
  if (response.ok) return response;
  const told = ((await response.json().catch(() => null)) || {}).error || {};
  throw new Refused(told.message || `the server said ${response.status}`, response.status, told.code);
}

export const get = async (path) => (await request(path)).json();
export const post = async (path, body, signal) => (await request(path, body, signal)).json();

// Events of a stream, until [DONE]. A stream that breaks off before it is an error.
export async function* events(path, body, signal) {
  const reader = (await request(path, { ...body, stream: true, stream_options: { include_usage: true } }, signal)).body.getReader();
  const decoder = new TextDecoder();
  let waiting = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      waiting += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const parts = waiting.split("\n\n");
      waiting = parts.pop();
      for (const part of parts) {
        const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
        if (data === "[DONE]") return;
        if (!data) continue;
        const event = JSON.parse(data);
        if (event.error) throw new Refused(event.error.message, 0, event.error.code);
        yield event;
      }
      if (done) throw new Refused("the answer broke off", 0);
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Refused) throw error;
    throw new Refused(`the answer broke off (${error.message})`, 0);
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Control characters and halves of characters, which no request may hold, as the sign for what cannot be shown.
export const clean = (text) => text.replace(/\r\n?/g, "\n").replace(/[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]/g, "\ufffd").toWellFormed();

// Answers one question; calls `grown` as the answer grows. Returns when it is whole, or throws.
export async function answer(body, into, signal, grown) {
  const started = performance.now();
  try {
    for await (const event of events("/v1/chat/completions", body, signal)) {
      if (event.usage) into.usage = event.usage;
      const choice = event.choices[0];
      if (!choice) continue;
      if (choice.delta.content) {
        if (into.first === null) into.first = performance.now() - started;
        into.pieces += 1;
        into.text += clean(choice.delta.content);
      }
      for (const name of ["sources", "details"]) if (choice.delta[name]) into[name] = choice.delta[name];
      if (choice.finish_reason) into.finish = choice.finish_reason;
      into.took = performance.now() - started;
      grown();
    }
  } finally {
    into.took = performance.now() - started;
  }
}
