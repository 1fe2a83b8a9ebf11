// Messages in the corner; over a dialog where one is open, since nothing else is above it.
import { on, toast } from "../shared/bus.js";
import { button, el } from "../shared/dom.js";

const STAY = { info: 5000, warning: 12000, error: 12000 };
const READING = 60; // milliseconds that reading a letter takes

/** What Gradio has to say (gr.Info, gr.Warning, gr.Error) is shown as all other messages; theirs say "Error". */
function adopt() {
  const wrap = document.querySelector(".toast-wrap");
  if (!wrap) return; // then they come as Gradio shows them
  const take = () => {
    for (const text of wrap.querySelectorAll('[data-testid="toast-text"]')) {
      if (!text.textContent) continue; // was heard
      const body = text.closest('[data-testid="toast-body"]'),
        level = ["error", "warning"].find((name) => body.classList.contains(name)) || "info";
      toast(text.textContent, level);
      text.textContent = ""; // it fades out, and would be read twice
      body.querySelector('[data-testid="toast-close"]').click();
    }
  };
  new MutationObserver(take).observe(wrap, { childList: true, characterData: true, subtree: true });
  wrap.classList.add("mg-adopted");
  take();
}

export function mountToasts(element) {
  const toasts = element.querySelector(".mg-toasts"),
    home = toasts.parentElement;
  /** In the dialog on top, else at home. */
  function place() {
    const wanted = [...document.querySelectorAll("dialog[open]")].pop() || home;
    if (toasts.parentElement !== wanted) wanted.append(toasts);
  }
  on(element, "dialog", place);
  on(element, "toast", ({ message, level, action }) => {
    place();
    if ([...toasts.children].some((node) => node.dataset.message === message)) return;
    const node = el("div", { class: "mg-toast " + level, "data-message": message }, el("span", { text: message }));
    if (action) {
      const run = () => {
        node.remove();
        action.run();
      };
      node.append(button(action.label, null, run, { class: "mg-soft", action: action.name }));
    }
    node.append(button("Dismiss", "close", () => node.remove(), { iconOnly: true }));
    toasts.append(node);
    const leave = () => (node.matches(":hover, :focus-within") ? setTimeout(leave, 1000) : node.remove());
    setTimeout(leave, Math.max(action ? STAY.error : STAY[level] || STAY.info, READING * message.length));
  });
  adopt();
}
