// What is asked before a video is extended or made again from a second on.
import { app } from "../shared/bus.js";
import { askFor, el, field } from "../shared/dom.js";

const number = (extra) => el("input", { type: "number", class: "mg-input", step: "1", ...extra });

export function askExtend(submit) {
  const seconds = number({ min: "1", max: "600", value: "2", required: true });
  askFor(
    "Extend the video",
    "The new seconds start from the saved latents, so there is no jump. The last prompt applies unless the timeline " +
      "has more.",
    [field("More seconds", seconds)],
    "Extend",
    () => submit(Number(seconds.value)),
  );
}

/** @param job the video. @param at its time on the stage. @param submit gets {second, prompt, seed, timeline}. */
export function askRedo(job, at, submit) {
  const last = job.done - 1,
    second = number({ min: "0", max: String(last), value: String(Math.min(last, Math.floor(at))), required: true }),
    prompt = el("textarea", { class: "mg-input", rows: "2", placeholder: "Leave empty to keep the prompts" }),
    seed = number({ min: "0", placeholder: "same" });
  const typed = document.querySelector("#mg-prompt textarea").value.trim(),
    form = { ...app.timeline, global_prompt: typed },
    edited = ["segments", "global_prompt"].some(
      (part) => JSON.stringify(form[part]) !== JSON.stringify(job.timeline[part]),
    ),
    follow = el("input", { type: "checkbox", class: "mg-check", "data-action": "follow" });
  const choice = el(
    "label",
    { class: "mg-row mg-small mg-choice" },
    follow,
    "Use the prompt and the timeline as they are on the page now (they were changed)",
  );
  askFor(
    "Redo from a second",
    "Every earlier second stays bit for bit as it is. The old version is kept in the gallery.",
    [
      field(`From second (0 to ${last})`, second),
      field("New prompt from there on", prompt),
      edited ? choice : "",
      field("New seed", seed),
    ],
    "Redo",
    () =>
      submit({
        second: Number(second.value),
        prompt: prompt.value.trim(),
        seed: seed.value === "" ? null : Number(seed.value),
        timeline: edited && follow.checked ? form : null,
      }),
  );
}
