// The form as a whole: it is kept as a draft, comes back after a reload, and shows what the video on the stage was made
// with. What somebody typed is never lost by that: it can be brought back.
import { app, call, emit, on, onDocument, toast, until } from "../shared/bus.js";
import { holdUntil } from "../shared/fills.js";
import { isNewTab, leftBehind, loadDraft, saveDraft } from "./draft.js";

const TYPED = ["prompt", "timeline"];
const LEAVE = { __type__: "update" };
const LONGEST = 1_000_000; // seconds
/** The nearest legal value of a number, set when its field is left. */
const LEGAL = {
  seconds: (n) => Math.min(LONGEST, Math.max(1, Math.round(Number(n)) || 1)),
  seed: (n) => (Number.isSafeInteger(n) && n >= -1 ? n : -1),
  vram_gb: (n) => (n === null || n >= 0 ? n : null),
};
const LABELS = { seconds: "The length", seed: "The seed", vram_gb: "The card memory" };
const ELEMENTS = { seconds: "#mg-seconds", seed: "#mg-seed", vram_gb: "#mg-vram" };
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

let names = [], // of all fields
  now = null, // their values
  base = {}, // what TYPED held when nobody had typed yet
  typing = null; // the timeline with what is being typed into a block, which is no value of the form yet
const restoring = []; // values by name, on their way into the fields

function save() {
  if (!names.length || !now) return;
  const values = typing ? now.map((value, i) => (names[i] === "timeline" ? typing : value)) : now,
    typed = typedIn(values);
  saveDraft(app.attached, names, values, same(typed, base) ? null : typed, base);
}

/** Gradio's inline handlers: all values, after every change. */
export const form = {
  note(values) {
    now = values;
    typing = null;
    save();
  },
  /** What the fields shall hold: those of `restoring`, unless somebody was quicker. */
  restore(values) {
    const after = values.map(() => LEAVE);
    for (const { found, unless } of restoring.splice(0))
      values.forEach((value, i) => {
        const name = names[i];
        if (name in found && !(unless && unless(value, i))) after[i] = found[name];
      });
    return after;
  },
};

const typedIn = (values) => Object.fromEntries(TYPED.map((name) => [name, values[names.indexOf(name)]]));
const isDirty = () => now !== null && !same(typedIn(now), base);

export function mount({ element, props, trigger, server }) {
  names = props.names;
  form.saved = async () => (await call(server.saved_names({}))).names || [];
  const start = JSON.parse(window.magiStart),
    startValues = props.ids.map((id) => (start[id] === undefined ? null : start[id]));
  base = typedIn(startValues);

  /** @param unless whether a field, by its value and place, holds something newer by then. */
  function restore(found, unless = null) {
    restoring.push({ found, unless });
    trigger("restore");
  }
  const others = (values) => (value, i) => !same(value, values[i]);
  /** Fill the form with what a job was made with. */
  function follow(job, options = {}) {
    if (options.sinceStart) holdUntil(startValues);
    props.value = { job, open: Boolean(options.open) };
    trigger("follow");
  }

  // --- a page that opens
  const fresh = isNewTab(),
    draft = loadDraft();
  if (draft) {
    app.attached = draft.job;
    base = draft.base || base;
    restore(draft.values, others(startValues));
  }
  /** Words that were typed in a tab that is closed, and never used. */
  async function offerOthers(mine) {
    const [other] = await leftBehind(mine);
    if (!other) return;
    const { prompt, timeline } = other,
      blocks = (timeline && timeline.segments) || [],
      words = [prompt, ...blocks.map((one) => one.prompt)].find(Boolean) || "a timeline";
    toast(`Something that was typed in another tab is kept: “${words.slice(0, 60)}”`, "info", {
      label: "Bring it here",
      name: "bring-other",
      run: () => (other.forget(), restore({ prompt, timeline })),
    });
  }
  if (fresh && draft) {
    const mine = Object.fromEntries(TYPED.map((name) => [name, draft.values[name]]));
    offerOthers(mine);
  }
  let opened = Boolean(draft);

  // --- Generate: two clicks ask for two videos, a double click or a key that is held down for one
  const isGenerate = (target) => Boolean(target.closest && target.closest("#mg-generate"));
  const onlyOnce = (event) => {
    const again =
      event.type === "click" ? isGenerate(event.target) && event.detail > 1 : event.repeat && event.key === "Enter";
    if (!again || !(isGenerate(event.target) || event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    event.stopPropagation();
  };
  for (const kind of ["click", "keydown"]) onDocument(element, kind, onlyOnce, true);

  // --- numbers that cannot be
  onDocument(element, "focusout", ({ target }) => {
    for (const [name, legal] of Object.entries(LEGAL)) {
      if (!target.matches || !target.matches(`${ELEMENTS[name]} input`)) continue;
      const text = target.value, // what Gradio knows of it may be older on a busy machine
        value = text === "" ? null : Number(text),
        right = legal(value);
      if (same(value, right)) continue;
      restore({ [name]: right }, () => {
        if (target.value !== text) return true;
        const found = right === null ? "left to the plan" : right === -1 ? "a new one each time" : right;
        toast(`${LABELS[name]} cannot be ${value ?? "empty"}; it is ${found} now.`);
        return false;
      });
    }
  });

  // --- the stage
  let was = null, // the job on the stage, as the last state reported it
    sent = null, // the last change that was sent to it: how many had reached it by then, and what TYPED held before
    busy = false;
  const countOf = (job) => (job && job.redirected ? job.redirected.count : 0);
  on(element, "show", ({ job, open }) => {
    app.attached = job;
    emit("poll");
    follow(job, { open });
  });
  on(element, "state", (state) => {
    if (!opened) {
      opened = true;
      if (app.attached) follow(app.attached, { sinceStart: true });
    }
    if (busy && !state.running) trigger("replan");
    busy = Boolean(state.running);
    const job = state.shown;
    if (!was || !job || was.id !== job.id) save();
    // Prompts that were changed while it ran stand in the video from their second on: so they shall in the form.
    const ended = was && job && was.id === job.id && was.state === "running" && job.state !== "running";
    if (ended && sent && countOf(job) <= sent.count) base = sent.base; // it came too late: what was typed is unused
    if (ended) sent = null;
    if (ended && job.redirected && !isDirty()) follow(job.id);
    was = job;
  });
  on(element, "typing", (timeline) => {
    typing = timeline;
    save();
  });
  on(element, "several", (pictures) => {
    props.value = { pictures };
    trigger("several");
  });
  on(element, "made", () => {
    if (now) base = typedIn(now);
    save();
  });
  on(element, "redirect", ({ prompt, timeline }) => {
    sent = { count: countOf(was), base: { ...base } };
    if (prompt !== undefined) base.prompt = prompt;
    if (timeline !== undefined && now) base.timeline = typedIn(now).timeline;
  });

  // --- answers of the server that fill the form, or some of it: an example, an imported timeline
  on(element, "filled", ({ names: filled, before, after }) => {
    const typed = (name) => before[filled.indexOf(name)],
      fresh = (name) => after[filled.indexOf(name)],
      taken = TYPED.filter((name) => filled.includes(name)),
      lost = taken.filter((name) => !same(typed(name), base[name]) && !same(typed(name), fresh(name)));
    base = { ...base, ...Object.fromEntries(taken.map((name) => [name, fresh(name)])) };
    if (!lost.length) return;
    const bring = Object.fromEntries(lost.map((name) => [name, typed(name)])),
      whole = filled.length === names.length;
    toast(whole ? "The form now shows what this video was made with." : "What you had typed was replaced.", "info", {
      label: "Bring back what I typed",
      name: "bring-back",
      run: () => restore(bring),
    });
  });
  /**
   * Generate with a new seed, in the place of a job that was stopped for it: once that has ended, else the video waits
   * behind it, and its beginning is in the bin.
   */
  on(element, "another-seed", async ({ instead }) => {
    const old = () => app.state.jobs.find((job) => job.id === instead);
    restore({ seed: -1 });
    emit("poll");
    const hasEnded = await until(() => !old() || !["waiting", "running"].includes(old().state));
    if (hasEnded && old() && old().project) await call(server.bin({ videos: [old().project] }));
    if (await until(() => now[names.indexOf("seed")] === -1)) document.querySelector("#mg-generate").click();
  });
  /** An undo takes back what came with a timeline, but for what was typed since. */
  on(element, "refill", ({ values, unless }) => restore(values, others(names.map((name) => unless[name]))));
}
