// The form as a whole: it is kept as a draft, comes back after a reload, and shows what the video on the stage was made
// with. What somebody typed is never lost by that: it can be brought back.
import { app, call, emit, on, onDocument, toast } from "../shared/bus.js";
import { holdUntil } from "../shared/fills.js";
import { loadDraft, saveDraft } from "./draft.js";

const TYPED = ["prompt", "timeline"];
const LEAVE = { __type__: "update" };
const LONGEST = 1_000_000; // seconds
/** The nearest legal value of a number, set when its field is left. */
const LEGAL = {
  seconds: (n) => Math.min(LONGEST, Math.max(1, Math.round(Number(n)) || 1)),
  seed: (n) => (Number.isSafeInteger(n) && n >= -1 ? n : -1),
  vram_gb: (n) => (n === null || n >= 0 ? n : null),
};
const ELEMENTS = { seconds: "#mg-seconds", seed: "#mg-seed", vram_gb: "#mg-vram" };
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

let names = [], // of all fields
  now = null, // their values
  base = {}, // what TYPED held when nobody had typed yet
  restoring = null; // values by name, on their way into the fields

/** Gradio's inline handlers: all values, after every change. */
export const form = {
  note(values) {
    now = values;
    if (names.length) saveDraft(app.attached, names, now);
  },
  /** What the fields shall hold: those of `restoring`, unless somebody was quicker. */
  restore(values) {
    const { found, unless } = restoring;
    restoring = null;
    return values.map((value, i) => {
      const name = names[i];
      if (!(name in found) || (unless && !same(value, unless[i]))) return LEAVE;
      return found[name];
    });
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

  function restore(found, unless = null) {
    restoring = { found, unless };
    trigger("restore");
  }
  /** Fill the form with what a job was made with. */
  function follow(job, options = {}) {
    if (options.sinceStart) holdUntil(startValues);
    props.value = { job, open: Boolean(options.open) };
    trigger("follow");
  }

  // --- a page that opens
  const draft = loadDraft();
  if (draft) {
    app.attached = draft.job;
    restore(draft.values, startValues);
  }
  let opened = Boolean(draft);

  // --- numbers that cannot be
  onDocument(element, "focusout", ({ target }) => {
    for (const [name, legal] of Object.entries(LEGAL)) {
      if (!target.closest || !target.closest(ELEMENTS[name])) continue;
      setTimeout(() => {
        const value = now && now[names.indexOf(name)];
        if (now && !same(value, legal(value))) restore({ [name]: legal(value) });
      }, 0);
    }
  });

  // --- the stage
  let was = null; // the job on the stage, as the last state reported it
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
    const job = state.shown;
    if (now !== null && (!was || !job || was.id !== job.id)) saveDraft(app.attached, names, now);
    // Prompts that were changed while it ran stand in the video from their second on: so they shall in the form.
    const ended = was && job && was.id === job.id && was.state === "running" && job.state !== "running";
    if (ended && job.redirected && !isDirty()) follow(job.id);
    was = job;
  });
  on(element, "several", (pictures) => {
    props.value = { pictures };
    trigger("several");
  });
  on(element, "made", () => {
    if (now) base = typedIn(now);
  });
  on(element, "redirect", ({ prompt, timeline }) => {
    if (prompt !== undefined) base.prompt = prompt;
    if (timeline !== undefined && now) base.timeline = typedIn(now).timeline;
  });

  // --- answers of the server that fill the whole form
  on(element, "filled", ({ before, after }) => {
    if (after.length !== names.length) return;
    const typed = typedIn(before),
      fresh = typedIn(after),
      lost = TYPED.filter((name) => !same(typed[name], base[name]) && !same(typed[name], fresh[name]));
    base = fresh;
    if (!lost.length) return;
    const bring = Object.fromEntries(lost.map((name) => [name, typed[name]]));
    toast("The form now shows what this video was made with.", "info", {
      label: "Bring back what I typed",
      name: "bring-back",
      run: () => restore(bring),
    });
  });
}
