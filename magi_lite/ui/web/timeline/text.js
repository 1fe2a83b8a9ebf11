// The text view: the server's own parser and printer, so that there is one grammar.
import { NO_ANSWER, answerOf, on, onDocument, toast, until } from "../shared/bus.js";
import { keepInside } from "../shared/dom.js";
import { combination } from "../shared/keys.js";
import { keep, recall } from "../shared/store.js";

const KEY = "magi-shorthand"; // what cannot be read yet stays in this tab
const PAUSE = 350; // milliseconds without a key before what is typed is read
const FIELDS = { seconds: "#mg-seconds input[type=number]", prompt: "#mg-prompt textarea" };

/** @param adopt takes a timeline and answers whether it changes anything. @param running: is a video being made? */
export function mountText(root, server, { value, adopt, running }) {
  const panel = root.querySelector(".tl-text"),
    shorthand = root.querySelector(".tl-shorthand"),
    problem = root.querySelector(".tl-error");
  let timer = null,
    lastRead = null,
    isTyped = false, // what is in the field has not been read
    reading = null, // { typed, answer }: a text that is on its way to the server
    filled = null, // what the server put into the form because of the text that was read last
    follows = null, // a promise: until it is there
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
    const answer = await answerOf(server.print_timeline({ timeline: value() }));
    if (mine() || !answer || answer.text === undefined) return;
    shorthand.value = lastRead = answer.text;
    isTyped = false;
    problem.textContent = "";
  }
  function setUnread(typed) {
    unread = typed;
    keep(KEY, typed, "sessionStorage");
  }
  function read(typed, loudly) {
    if (reading && reading.typed === typed && !loudly) return reading.answer;
    const mine = { typed, answer: ask(typed, loudly) };
    reading = mine;
    return mine.answer.finally(() => {
      if (reading === mine) reading = null;
    });
  }
  async function ask(typed, loudly) {
    const answer = (await answerOf(server.parse_timeline({ text: typed }))) || { error: NO_ANSWER };
    const words = answer.error || answer.notice || "";
    problem.textContent = words;
    if (!loudly) setUnread(answer.error ? typed : null);
    if (words && loudly) toast(words, "error");
    if (answer.error) return false;
    lastRead = typed;
    if (!loudly && shorthand.value === typed) isTyped = false;
    text.reading = true; // an import may need more seconds than the video has
    filled = null;
    if (adopt(answer.timeline)) follows = formFollows().finally(() => (follows = null));
    text.reading = false;
    return true;
  }

  // --- Generate makes what stands in the text, also where it comes before the text is read
  const fieldsHold = ({ names, after }) =>
    Object.entries(FIELDS).every(([name, query]) => {
      const place = names.indexOf(name),
        field = document.querySelector(query);
      return place < 0 || !field || field.value === String(after[place] ?? "");
    });
  /** Until the form holds what the text brought with it: a length, a prompt. */
  const formFollows = () => until(() => filled && fieldsHold(filled));
  on(root, "filled", (news) => {
    if (news.names.includes("timeline")) filled = news;
  });
  const readFirst = async (event) => {
    const button = event.target.closest && event.target.closest("#mg-generate"),
      typed = isTyped && !panel.hidden;
    if (!button || !(typed || follows)) return;
    event.preventDefault();
    event.stopPropagation();
    clearTimeout(timer);
    if (typed && !(await read(shorthand.value))) {
      toast(`${problem.textContent} Correct the timeline's text first, or press Escape in it.`, "error");
      return;
    }
    await follows;
    button.click();
  };
  onDocument(root, "click", readFirst, true);

  keepInside(shorthand);
  shorthand.addEventListener("input", () => {
    isTyped = true;
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
    if (combination(event) === "Ctrl+Enter" && running()) {
      event.preventDefault();
      event.stopPropagation(); // it applies to the video that is being made, and asks for no other one
      clearTimeout(timer);
      read(shorthand.value);
      return;
    }
    if (event.key !== "Escape" || !unread) return;
    event.preventDefault();
    clearTimeout(timer);
    isTyped = false;
    setUnread(null);
    problem.textContent = "";
    lastRead = shorthand.value; // leaving it does not read it once more
    shorthand.blur();
  });
  unread = recall(KEY, "sessionStorage");
  if (unread) {
    panel.hidden = false;
    shorthand.value = unread;
    isTyped = true;
    read(unread);
  }
  return text;
}
