// A section that opens. Its fields are built when it is first opened and stay: closing only hides them, so nothing
// that was typed is ever drawn anew. (Gradio's own accordion sets its fields back once while it opens.)
import { icon } from "../shared/icons.js";

export function mount({ element, props, trigger, watch }) {
  const head = element.querySelector(".fo-head"),
    note = element.querySelector(".fo-note");
  head.querySelector(".fo-title").textContent = props.title;
  head.append(icon("down"));
  head.setAttribute("aria-controls", props.body);
  head.addEventListener("click", () => {
    const open = head.getAttribute("aria-expanded") !== "true";
    head.setAttribute("aria-expanded", String(open));
    element.closest(".mg-fold").dataset.open = String(open);
    if (open) trigger("opened");
  });
  const say = () => {
    note.textContent = (props.value && props.value.note) || "";
  };
  watch("value", say);
  say();
}
