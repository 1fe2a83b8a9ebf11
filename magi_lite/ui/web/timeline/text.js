// The text view: the server's own parser and printer, so that there is one grammar.
import { NO_ANSWER, answerOf, toast } from "../shared/bus.js";
import { keepInside } from "../shared/dom.js";
import { keep, recall } from "../shared/store.js";

const KEY = "magi-shorthand"; // what cannot be read yet stays in this tab
const PAUSE = 350; // milliseconds without a key before what is typed is read

export function mountText(root, server, { value, adopt }) {
  const panel = root.querySelector(".tl-text"),
    shorthand = root.querySelector(".tl-shorthand"),
    problem = root.querySelector(".tl-error");
  let timer = null,
    lastRead = null,
    unread = null;
  const text = { reading: false, refresh, read, toggle, isOpen: () => !panel.hidden };

  function toggle() {
    panel.hidden = !panel.hidden;
    refresh();
    return !panel.hidden;
  }
  /** Show the timeline as text, but for a text that could not be read: that one stays until it can, or Escape. */
  async function refresh() {
    const mine = () => document.activeElement === shorthand || unread;
    if (panel.hidden || mine()) return;
    const answer = await answerOf(server.print_timeline(value()));
    if (mine() || !answer || answer.text === undefined) return;
    shorthand.value = lastRead = answer.text;
    problem.textContent = "";
  }
  function setUnread(typed) {
    unread = typed;
    keep(KEY, typed, "sessionStorage");
  }
  async function read(typed, loudly) {
    const answer = (await answerOf(server.parse_timeline({ text: typed }))) || { error: NO_ANSWER };
    const words = answer.error || answer.notice || "";
    problem.textContent = words;
    if (!loudly) setUnread(answer.error ? typed : null);
    if (words && loudly) toast(words, "error");
    if (answer.error) return false;
    lastRead = typed;
    text.reading = true; // an import may need more seconds than the video has
    adopt(answer.timeline);
    text.reading = false;
    return true;
  }

  keepInside(shorthand);
  shorthand.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => read(shorthand.value), PAUSE);
  });
  shorthand.addEventListener("blur", async () => {
    clearTimeout(timer);
    if (problem.textContent) return;
    if (shorthand.value !== lastRead) await read(shorthand.value);
    refresh();
  });
  shorthand.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !unread) return;
    event.preventDefault();
    clearTimeout(timer);
    setUnread(null);
    problem.textContent = "";
    lastRead = shorthand.value; // leaving it does not read it once more
    shorthand.blur();
  });
  unread = recall(KEY, "sessionStorage");
  if (unread) {
    panel.hidden = false;
    shorthand.value = unread;
    read(unread);
  }
  return text;
}
