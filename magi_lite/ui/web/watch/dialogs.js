// What is asked before a video is extended or made again from a second on.
import { app } from "../shared/bus.js";
import { askFor, el, field } from "../shared/dom.js";
import { over, same } from "../timeline/model.js";

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

/**
 * @param job the video.
 * @param at its time on the stage.
 * @param block the page's block that is asked for; null: a new prompt holds to the video's end.
 * @param submit gets {second, prompt, seed, timeline}.
 */
export function askRedo(job, at, block, submit) {
  const first = block ? block.start : 0,
    last = Math.min(job.done, block ? block.end : Infinity) - 1,
    start = Math.max(first, Math.min(last, Math.floor(at))),
    second = number({ min: String(first), max: String(last), value: String(start), required: true }),
    prompt = el("textarea", { class: "mg-input", rows: "2", placeholder: "Leave empty to keep the prompts" }),
    seed = number({ min: "0", "data-field": "seed" }); // left empty: the same where the prompts change, else another
  const typed = document.querySelector("#mg-prompt textarea").value.trim(),
    form = { ...app.timeline, global_prompt: typed },
    edited = ["segments", "global_prompt"].some(
      (part) => JSON.stringify(form[part]) !== JSON.stringify(job.timeline[part]),
    ),
    follow = el("input", { type: "checkbox", class: "mg-check", "data-action": "follow" });
  if (block) prompt.value = block.prompt;
  /** What replaces the video's prompts: the page's timeline, or the block among the video's other ones. */
  function timeline() {
    const base = edited && follow.checked ? form : job.timeline,
      words = prompt.value.trim(),
      known = block && base.segments.some((one) => same(one, { ...one, ...block, prompt: words }));
    if (!block || !words || known) return base === form ? form : null;
    return { ...base, segments: over(base.segments, { ...block, prompt: words }) };
  }
  const choice = el(
    "label",
    { class: "mg-row mg-small mg-choice" },
    follow,
    "Use the prompt and the timeline as they are on the page now (they were changed)",
  );
  const draw = () => (seed.placeholder = timeline() || (!block && prompt.value.trim()) ? "same" : "another");
  for (const node of [prompt, follow]) node.addEventListener("input", draw);
  draw();
  askFor(
    "Redo from a second",
    block
      ? "Every earlier second stays bit for bit as it is; later blocks are made again with their prompts. The old " +
          "version is kept in the gallery."
      : "Every earlier second stays bit for bit as it is. The old version is kept in the gallery.",
    [
      field(`From second (${first} to ${last})`, second),
      field(block ? `Prompt of seconds ${first} to ${block.end}` : "New prompt from there on", prompt),
      edited ? choice : "",
      field("New seed", seed),
    ],
    "Redo",
    () =>
      submit({
        second: Number(second.value),
        prompt: block ? "" : prompt.value.trim(),
        seed: seed.value === "" ? null : Number(seed.value),
        timeline: timeline(),
      }),
  );
  if (!block) return;
  prompt.focus();
  prompt.select();
}
