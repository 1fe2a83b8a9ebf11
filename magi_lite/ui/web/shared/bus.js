// How panels hear of each other: events on the window, and the app's last known state.

/** What every panel may read. `state` is the server's last answer, `attached` the id of the job on the stage. */
export const app = { state: null, attached: null, offline: false, timeline: null, readyAt: null };

export const emit = (name, detail) => window.dispatchEvent(new CustomEvent("magi-" + name, { detail }));

/** Call back on every event `name` for as long as `owner` is part of the page. */
export function on(owner, name, callback) {
  const handler = (event) => {
    if (owner.isConnected) callback(event.detail);
    else window.removeEventListener("magi-" + name, handler);
  };
  window.addEventListener("magi-" + name, handler);
}

/** Listen on the document for as long as `owner` is part of the page. */
export function onDocument(owner, name, callback, options) {
  const handler = (event) => {
    if (owner.isConnected) callback(event);
    else document.removeEventListener(name, handler, options);
  };
  document.addEventListener(name, handler, options);
}

/** Escape cancels what the pointer is dragging, before anybody else hears of it. */
export function onEscape(owner, isDragging, cancel) {
  const press = (event) => {
    if (event.key !== "Escape" || !isDragging()) return;
    event.preventDefault();
    event.stopPropagation();
    cancel();
  };
  onDocument(owner, "keydown", press, true);
}

const PATIENCE = 10000; // milliseconds
/** Until something holds that events bring about; whether it did in time. */
export async function until(holds) {
  const end = performance.now() + PATIENCE;
  while (!holds() && performance.now() < end) await new Promise((done) => setTimeout(done, 20));
  return Boolean(holds());
}

export const toast = (message, level = "info", action = null) => emit("toast", { message, level, action });

export const NO_ANSWER = "The app does not answer. Nothing was changed; try again when it is back.";

/** The answer of a server function; null where none comes. */
export const answerOf = (promise) => Promise.resolve(promise).catch(() => null);

/** The answer of a server function, shown as a message where it is {error}; no answer at all is an error, too. */
export async function call(promise) {
  let answer = await answerOf(promise);
  if (!answer || typeof answer !== "object") {
    answer = { error: NO_ANSWER };
    emit("poll");
  }
  if (answer.error) toast(answer.error, "error");
  return answer;
}
