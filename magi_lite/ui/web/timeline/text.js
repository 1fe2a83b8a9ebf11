// The text view: the server's own parser and printer, so that there is one grammar.
import { NO_ANSWER, toast } from "../shared/bus.js";
import { keepInside } from "../shared/dom.js";

const PAUSE = 350; // milliseconds without a key before what is typed is read

export function mountText(root, server, { value, adopt }) {
  const panel = root.querySelector(".tl-text"),
    shorthand = root.querySelector(".tl-shorthand"),
    problem = root.querySelector(".tl-error");
  let timer = null,
    lastRead = null;
  const text = { reading: false, refresh, read, toggle };

  function toggle() {
    panel.hidden = !panel.hidden;
    refresh();
    return !panel.hidden;
  }
  async function refresh() {
    if (panel.hidden || document.activeElement === shorthand) return;
    const answer = await server.print_timeline(value());
    if (document.activeElement === shorthand || !answer || answer.text === undefined) return;
    shorthand.value = lastRead = answer.text;
    problem.textContent = "";
  }
  async function read(typed, loudly) {
    const answer = (await server.parse_timeline({ text: typed })) || { error: NO_ANSWER };
    const words = answer.error || answer.notice || "";
    problem.textContent = words;
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
  return text;
}
