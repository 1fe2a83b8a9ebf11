// The timeline editor: what the tools and keys do, and what goes to and comes from the server.
import { app, call, emit, on, toast } from "../shared/bus.js";
import { askFor, button, el, field, keepInside, saveAs } from "../shared/dom.js";
import { count } from "../shared/format.js";
import { Editor } from "./editor.js";
import { provide, showKeys } from "../shared/keys.js";
import { keep, recall } from "../shared/store.js";
import * as Model from "./model.js";
import { listen } from "./pointer.js";
import { copy, paste, removeAll, ripple, slide } from "./several.js";
import { mountSplitter } from "./splitter.js";
import { mountShots } from "./shots.js";
import { State } from "./state.js";
import { mountText } from "./text.js";
import { View } from "./view.js";

const NEW_BLOCK = 2; // seconds
const MOST_BLEND = 8;
const BY_KEY = [
  "add",
  "split",
  "merge",
  "duplicate",
  "delete",
  "undo",
  "redo",
  "zoomin",
  "zoomout",
  "fit",
  "all",
  "copy",
  "cut",
  "paste",
  "ripple",
  "marker",
];
const BESIDE = ["prompt", "seconds", "endless"]; // fields that a timeline which comes as a whole may fill
const CLIPBOARD = "magi-blocks";
const FRAMES = 24; // markers stand on frames
const KINDS = {
  json: ["JSON", "application/json"],
  srt: ["Subtitles (SRT)", "text/plain"],
  txt: ["Text", "text/plain"],
  otio: ["OpenTimelineIO", "application/json"],
};

export function mount({ element, props, trigger, server, watch, upload }) {
  const root = element.querySelector(".tl");
  const state = new State(publish),
    view = new View(root, state, () => props.seconds || 0),
    editor = new Editor(view, state, apply);

  // What was filled in beside a timeline that came as a whole, by the step of the history: an undo takes it back, too.
  const beside = new Map(); // {before, after}: values by name
  let coming = null, // what is filled in beside blocks that are on their way here
    unanswered = null; // the step of an import that the server has not answered yet
  on(element, "filled", ({ names, before, after }) => {
    const place = names.indexOf("timeline"),
      others = (values) =>
        Object.fromEntries(
          BESIDE.filter((name) => names.includes(name)).map((name) => [name, values[names.indexOf(name)]]),
        );
    if (place < 0) return;
    const both = { before: others(before), after: others(after) };
    if (unanswered) beside.set(unanswered, both);
    else if (!Model.same(before[place], after[place])) coming = both;
    unanswered = null;
  });

  function publish(globalPrompt) {
    props.value = app.timeline = state.value(globalPrompt);
    trigger(globalPrompt || text.reading ? "imported" : "commit");
    unanswered = globalPrompt || text.reading ? state.committed : null;
    coming = null;
    if (view.video.running) {
      const seconds = view.video.seconds === null ? Infinity : view.video.seconds;
      const segments = Model.within(app.timeline.segments, seconds);
      emit("redirect", { job: app.attached, timeline: { ...state.value(), segments } });
    }
    view.paint();
    text.refresh();
  }
  function apply(blocks) {
    if (!state.apply(blocks)) view.paint();
  }
  function load(data) {
    const old = state.committed;
    state.load(data);
    if (coming && state.committed !== old) beside.set(state.committed, coming);
    coming = null;
    app.timeline = state.value();
    view.paint();
    text.refresh();
  }

  // --- what can be done
  const locked = () => view.video.locked;
  const say = (text) => view.say(text);
  const edits = {
    select(id, focus) {
      state.select(id);
      view.paint();
      if (focus) view.focusBlock(id);
    },
    selectMany(ids) {
      state.select(ids[ids.length - 1] || null, ids);
      view.paint();
      if (state.selected) view.focusBlock(state.selected);
      say(`${count(ids.length, "block")} selected`);
    },
    toggle(id) {
      const ids = [...state.chosen].filter((one) => one !== id);
      edits.selectMany(state.chosen.has(id) ? ids : [...ids, id]);
    },
    addAt(second) {
      const result = Model.add(state.blocks, second, NEW_BLOCK, { prompt: "" }, view.limit, locked());
      if (!result.id) {
        say("There is no room for another block.");
        return;
      }
      state.select(result.id);
      state.apply(result.blocks);
      editor.edit(result.id);
    },
    step(by) {
      const i = state.blocks.findIndex((b) => b.id === state.selected),
        next = state.blocks[Model.clamp(i + by, 0, state.blocks.length - 1)];
      if (next) edits.select(next.id, true);
    },
    resizeBy(edge, by) {
      const block = state.find(),
        target = block[edge] + by;
      apply(
        state.ripple
          ? ripple(state.blocks, block.id, edge, target, locked())
          : Model.resize(state.blocks, block.id, edge, target, view.reach, locked()),
      );
      sayWhere();
    },
    moveBy(by) {
      const block = state.find();
      apply(
        state.chosen.size > 1
          ? slide(state.blocks, state.chosen, by, view.reach, locked())
          : Model.move(state.blocks, block.id, block.start + by, view.reach, locked()),
      );
      view.focusBlock(block.id);
      sayWhere();
    },
  };
  function sayWhere() {
    const now = state.find();
    say(`Seconds ${now.start} to ${now.end}`);
  }
  const actions = {
    add() {
      edits.addAt(state.selected ? state.find().end : 0);
    },
    split() {
      const cut = view.cut();
      if (!cut) return;
      apply(Model.split(state.blocks, cut.id, cut.at, locked()));
      if (state.selected) view.focusBlock(state.selected);
      say("Split");
    },
    merge() {
      if (!state.selected) return;
      const i = state.blocks.findIndex((b) => b.id === state.selected),
        next = Model.merge(state.blocks, state.selected, locked());
      if (!Model.find(next, state.selected)) state.select(state.blocks[i - 1].id);
      apply(next);
      view.focusBlock(state.selected);
      say("Merged");
    },
    duplicate() {
      const block = state.find();
      if (!block || state.chosen.size > 1) return;
      const length = block.end - block.start,
        result = Model.add(state.blocks, block.end, length, block, view.limit, locked());
      if (!result.id) {
        say("There is no room for a copy.");
        return;
      }
      state.select(result.id);
      apply(result.blocks);
      view.focusBlock(state.selected);
      say("Duplicated");
    },
    delete() {
      const i = state.blocks.findIndex((b) => b.id === state.selected),
        next = removeAll(state.blocks, state.chosen, locked(), state.ripple),
        gone = state.blocks.length - next.length;
      if (!gone) return;
      state.select(next.length ? next[Model.clamp(i, 0, next.length - 1)].id : null);
      apply(next);
      if (state.selected) view.focusBlock(state.selected);
      say(gone > 1 ? `${gone} blocks deleted` : "Deleted");
    },
    all() {
      edits.selectMany(state.blocks.map((block) => block.id));
    },
    copy() {
      const clip = copy(state.blocks, state.chosen);
      if (!clip || String(window.getSelection())) return false; // selected text is copied as ever
      keep(CLIPBOARD, clip);
      say(`${count(clip.blocks.length, "block")} copied`);
      return true;
    },
    cut() {
      if (actions.copy() === false) return false;
      actions.delete();
      return true;
    },
    paste() {
      const clip = recall(CLIPBOARD);
      if (!clip || !Array.isArray(clip.blocks)) return false;
      const after = [...state.chosen].map((id) => state.find(id).end),
        at = view.time !== null ? Math.round(view.time) : Math.max(0, ...after),
        result = paste(state.blocks, clip, at, locked(), state.ripple);
      state.select(result.ids[0], result.ids);
      apply(result.blocks);
      view.focusBlock(result.ids[0]);
      say(`${count(result.ids.length, "block")} pasted`);
      return true;
    },
    ripple() {
      state.ripple = !state.ripple;
      tools.ripple.setAttribute("aria-pressed", String(state.ripple));
      say(state.ripple ? "Blocks behind an edit move with it" : "Blocks behind an edit stay");
    },
    marker() {
      const at = Math.round((view.time || 0) * FRAMES) / FRAMES;
      askMarker({ at: Math.round(at * 1000) / 1000, name: "" }, null);
    },
    undo() {
      const other = beside.get(state.committed);
      if (!state.undo()) return;
      if (other) emit("refill", { values: other.before, unless: other.after });
      say("Undone");
    },
    redo() {
      if (!state.redo()) return;
      const other = beside.get(state.committed);
      if (other) emit("refill", { values: other.after, unless: other.before });
      say("Redone");
    },
    zoomin: () => view.setZoom(view.scale * 1.5),
    zoomout: () => view.setZoom(view.scale / 1.5),
    fit: () => view.fit(),
    blendmore: () => blendBy(1),
    blendless: () => blendBy(-1),
    export: askExport,
    import() {
      filePicker.value = "";
      filePicker.click();
    },
    text() {
      tools.text.setAttribute("aria-expanded", String(text.toggle()));
    },
    help: showKeys,
  };
  // --- markers
  /** Name, move or remove a marker; `i` is its number, null a new one's. */
  function askMarker(mark, i) {
    const name = el("input", { type: "text", class: "mg-input", value: mark.name, maxlength: "120" }),
      at = el("input", {
        type: "number",
        class: "mg-input",
        min: "0",
        max: String(Math.max(mark.at, view.shown)), // one beyond what the timeline shows could never be seen again
        step: "any",
        value: String(mark.at),
        required: true,
      });
    const put = (markers) => {
      state.markers = markers.sort((a, b) => a.at - b.at);
      if (!state.commit()) view.paint();
    };
    const others = () => state.markers.filter((_, place) => place !== i);
    const remove = button("Remove", "trash", () => (put(others()), box.close()), {
      class: "mg-danger",
      action: "remove-marker",
    });
    const box = askFor(
      i === null ? "New marker" : "Marker",
      "Markers are for you: they are kept with the video's settings and change nothing in it.",
      [field("Name", name), field("At second", at), i === null ? "" : remove],
      "Keep",
      () => {
        put([...others(), { at: Number(at.value), name: name.value.trim() }]);
        return {};
      },
    );
    name.focus();
  }
  view.openMarker = (i) => askMarker(state.markers[i], i);

  // --- files
  function askExport() {
    const choice = el(
      "select",
      { class: "mg-input", "data-field": "kind" },
      ...Object.entries(KINDS).map(([kind, [label]]) => el("option", { value: kind, text: `${label} (.${kind})` })),
    );
    const intro =
      "JSON and OpenTimelineIO keep everything, text everything but the markers. Subtitles keep times, cuts and the " +
      "blocks' own prompts.";
    askFor("Export the timeline", intro, [field("As", choice)], "Save", async () => {
      const prompt = document.querySelector("#mg-prompt textarea"),
        whole = state.value(prompt ? prompt.value.trim() : "");
      const answer = await call(server.write_timeline({ timeline: whole, kind: choice.value }));
      const kind = choice.value;
      if (!answer.error) saveAs(new Blob([answer.text], { type: KINDS[kind][1] }), `timeline.${kind}`);
      return answer;
    });
  }
  async function readFile(file) {
    if (file.size > 2e6) toast("A timeline file is small; this one is larger than 2 MB.", "error");
    else if (await text.read(await file.text(), true)) toast(`The timeline of ${file.name} is on the page now.`);
  }
  on(element, "timeline-file", readFile);

  function blendBy(by) {
    state.blend = Model.clamp(state.blend + by, 0, MOST_BLEND);
    if (!state.commit()) view.paint();
  }

  // --- tools
  const tools = view.tools;
  const tool = (name, label, extra = {}) =>
    (tools[name] = button(label, extra.icon || name, () => actions[name](), {
      iconOnly: true,
      action: name,
      ...extra,
    }));
  const group = (...children) => el("span", { class: "tl-group" }, ...children);
  const small = (name, label, icon) => button(label, icon, actions[name], { iconOnly: true, action: name });
  tools.blend = el(
    "span",
    { class: "tl-blend", title: "Seconds over which one prompt fades into the next" },
    el("span", { text: "Blend " }),
    small("blendless", "Blend less", "down"),
    el("output", { text: "none" }),
    small("blendmore", "Blend more", "up"),
  );
  const accept = ".json,.txt,.srt,.otio,application/json,text/plain";
  const filePicker = el("input", { type: "file", accept, hidden: true, tabindex: "-1", "aria-label": "Timeline file" });
  view.barNode.append(
    group(tool("add", "Add block", { iconOnly: false, class: "mg-soft" })),
    group(
      tool("split", "Split (S)"),
      tool("merge", "Merge with the next (M)"),
      tool("duplicate", "Duplicate (D)", { icon: "copy" }),
      tool("delete", "Delete (Del)", { icon: "trash" }),
    ),
    group(tool("undo", "Undo (Ctrl+Z)"), tool("redo", "Redo (Ctrl+Y)")),
    group(
      tool("ripple", "Ripple (R): blocks behind an edit move with it"),
      tool("marker", "Marker at the playhead (Shift+M)"),
    ),
    group(tools.blend),
    el("span", { class: "tl-space" }),
    group(tool("zoomout", "Zoom out"), tool("fit", "Fit to width"), tool("zoomin", "Zoom in")),
    group(
      tool("import", "Import a timeline", { icon: "upload" }),
      tool("export", "Export the timeline", { icon: "download" }),
      tool("text", "As text", { iconOnly: false }),
      tool("help", "Keys"),
    ),
    filePicker,
  );
  tools.ripple.setAttribute("aria-pressed", "false");
  // --- keyboard
  const selectedOr = (run) => (by) => {
    const focused = document.activeElement && document.activeElement.dataset.id;
    if (focused && !state.chosen.has(focused)) state.select(focused);
    else if (focused) state.selected = focused;
    return state.find() ? run(by) : false;
  };
  const isHere = () => root.offsetParent !== null; // on another tab its keys are not ours
  const shots = mountShots({ view, state, server, upload, apply, select: edits.select });
  provide({
    ...Object.fromEntries(Object.entries(shots).map(([name, run]) => [name, selectedOr(() => run())])),
    ...Object.fromEntries(BY_KEY.map((name) => [name, () => (isHere() ? actions[name]() : false)])),
    step: selectedOr((by) => edits.step(by)),
    write: selectedOr(() => editor.edit(state.selected)),
    moveBy: selectedOr((by) => edits.moveBy(by)),
    endBy: selectedOr((by) => edits.resizeBy("end", by)),
    startBy: selectedOr((by) => edits.resizeBy("start", by)),
  });
  mountSplitter(root.querySelector(".tl-splitter"));
  const pointer = listen(view, state, editor, edits);

  // --- text and files
  const text = mountText(root, server, {
    value: () => state.value(),
    running: () => view.video.running,
    adopt(data) {
      view.forget();
      const changed = state.adopt(data);
      view.paint();
      return changed;
    },
  });
  tools.text.setAttribute("aria-expanded", String(text.isOpen()));
  keepInside(filePicker).addEventListener("change", () => {
    if (filePicker.files[0]) readFile(filePicker.files[0]);
  });

  // --- news from Python (value, seconds) and from the server's state (what is rendered)
  watch(["value", "seconds"], () => {
    if (pointer.busy() || editor.open) return;
    if (!Model.same(props.value, state.value())) load(props.value);
    view.keys.ruler = "";
    view.paint();
  });
  on(element, "state", (now) => view.follow(now.shown));
  on(element, "branch", (now) => {
    view.branch = now ? now.second : null;
    view.drawBranch();
  });
  on(element, "range", (range) => {
    view.range = range;
    view.drawRange();
  });
  on(element, "time", (now) => {
    view.time = now && app.attached === now.job ? now.time : null;
    view.drawHead();
  });
  const sizes = new ResizeObserver(() => view.resized());
  sizes.observe(view.scrollNode);
  sizes.observe(view.laneNode);
  load(props.value);
  if (app.state) view.follow(app.state.shown);
}
