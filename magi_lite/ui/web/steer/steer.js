// The prompt of a video that is being made can be changed for its seconds that have not begun. This line says which
// ones those are, and sends the prompt when asked to, so that a half-typed sentence never applies.
import { app, emit, on, onDocument } from "../shared/bus.js";
import { button } from "../shared/dom.js";
import { provide } from "../shared/keys.js";

export function mount({ element }) {
  const root = element.querySelector(".st"),
    line = root.querySelector(".st-text");
  let job = null,
    key = "";
  const box = () => document.querySelector("#mg-prompt textarea");
  const typed = () => (box() ? box().value.trim() : "");
  const send = button("Apply", "play", apply, {
    class: "mg-primary",
    action: "apply",
    title: "Use this prompt for the seconds that have not begun (Ctrl + Enter)",
    server: true,
  });
  root.append(send);

  function apply() {
    if (send.disabled || send.hidden || !job) return;
    emit("redirect", { job: job.id, prompt: typed() });
    box().focus();
  }
  function sentence(late, changed) {
    if (late)
      return "Every second of this video has begun. A new prompt applies to its next version: Redo, or Generate.";
    if (changed) return "Not applied yet.";
    const applied = job.redirected ? `Applied from second ${job.redirected.second}. ` : "";
    return `${applied}A new prompt can apply from second ${job.locked} on.`;
  }
  function draw() {
    const running = Boolean(job && job.state === "running"),
      late = running && job.seconds !== null && job.locked >= job.seconds,
      changed = running && typed() !== job.timeline.global_prompt.trim(),
      empty = running && !typed() && !job.timeline.segments.length,
      text = running ? sentence(late, changed) : "",
      label = running ? `Apply from second ${job.locked}` : "",
      next = [running, late, changed, empty, text, label].join("|");
    if (next === key) return;
    key = next;
    root.hidden = !running;
    line.textContent = text;
    send.querySelector("span").textContent = label;
    send.setAttribute("aria-label", label);
    send.hidden = late || !changed;
    send.disabled = !changed || empty;
  }

  onDocument(element, "input", (event) => {
    if (event.target === box()) draw();
  });
  provide({
    generate() {
      draw();
      const steering = !send.hidden && !root.hidden && document.activeElement === box(),
        generate = document.querySelector("#mg-generate");
      if (steering) apply();
      else if (generate && !generate.disabled) generate.click();
    },
  });
  on(element, "state", (state) => {
    job = state.shown;
    draw();
  });
  if (app.state) {
    job = app.state.shown;
    draw();
  }
}
