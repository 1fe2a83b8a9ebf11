// Messages in the corner; over a dialog where one is open, since nothing else is above it.
import { on } from "../shared/bus.js";
import { button, el } from "../shared/dom.js";

const STAY = { info: 5000, error: 12000 };

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
    setTimeout(() => node.remove(), action ? STAY.error : STAY[level] || STAY.info);
  });
}
