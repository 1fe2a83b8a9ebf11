// The timeline editor: what the tools and keys do, and what goes to and comes from the server.
import { app, emit, on, toast } from "../shared/bus.js";
import { button, el, keepInside } from "../shared/dom.js";
import { Editor } from "./editor.js";
import { provide, showKeys } from "../shared/keys.js";
import * as Model from "./model.js";
import { listen } from "./pointer.js";
import { mountSplitter } from "./splitter.js";
import { State } from "./state.js";
import { mountText } from "./text.js";
import { View } from "./view.js";

const NEW_BLOCK = 2; // seconds
const MOST_BLEND = 8;
const BY_KEY = ["add", "split", "merge", "duplicate", "delete", "undo", "redo", "zoomin", "zoomout", "fit"];

export function mount({ element, props, trigger, server, watch }) {
  const root = element.querySelector(".tl");
  const state = new State(publish),
    view = new View(root, state, () => props.seconds || 0),
    editor = new Editor(view, state, apply);

  function publish(globalPrompt) {
    props.value = app.timeline = state.value(globalPrompt);
    trigger(globalPrompt || text.reading ? "imported" : "commit");
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
    state.load(data);
    app.timeline = state.value();
    view.paint();
    text.refresh();
  }

  // --- what can be done
  const locked = () => view.video.locked;
  const say = (text) => view.say(text);
  const edits = {
    select(id, focus) {
      state.selected = id;
      view.paint();
      if (focus) view.focusBlock(id);
    },
    addAt(second) {
      const result = Model.add(state.blocks, second, NEW_BLOCK, "", view.limit, locked());
      if (!result.id) {
        say("There is no room for another block.");
        return;
      }
      state.selected = result.id;
      state.apply(result.blocks);
      editor.edit(result.id);
    },
    step(by) {
      const i = state.blocks.findIndex((b) => b.id === state.selected),
        next = state.blocks[Model.clamp(i + by, 0, state.blocks.length - 1)];
      if (next) edits.select(next.id, true);
    },
    resizeBy(edge, by) {
      const block = state.find();
      apply(Model.resize(state.blocks, block.id, edge, block[edge] + by, view.reach, locked()));
      sayWhere();
    },
    moveBy(by) {
      const block = state.find();
      apply(Model.move(state.blocks, block.id, block.start + by, view.reach, locked()));
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
      if (!state.selected) return;
      const at = view.time === null ? null : Math.round(view.time);
      apply(Model.split(state.blocks, state.selected, at, locked()));
      view.focusBlock(state.selected);
      say("Split");
    },
    merge() {
      if (!state.selected) return;
      const i = state.blocks.findIndex((b) => b.id === state.selected),
        next = Model.merge(state.blocks, state.selected, locked());
      if (!Model.find(next, state.selected)) state.selected = state.blocks[i - 1].id;
      apply(next);
      view.focusBlock(state.selected);
      say("Merged");
    },
    duplicate() {
      const block = state.find();
      if (!block) return;
      const length = block.end - block.start,
        result = Model.add(state.blocks, block.end, length, block.prompt, view.limit, locked());
      if (!result.id) {
        say("There is no room for a copy.");
        return;
      }
      state.selected = result.id;
      apply(result.blocks);
      view.focusBlock(state.selected);
      say("Duplicated");
    },
    delete() {
      const i = state.blocks.findIndex((b) => b.id === state.selected),
        next = Model.remove(state.blocks, state.selected, locked());
      if (i < 0 || next.length === state.blocks.length) return;
      state.selected = next.length ? next[Math.min(i, next.length - 1)].id : null;
      apply(next);
      if (state.selected) view.focusBlock(state.selected);
      say("Deleted");
    },
    undo() {
      if (state.undo()) say("Undone");
    },
    redo() {
      if (state.redo()) say("Redone");
    },
    zoomin: () => view.setZoom(view.scale * 1.5),
    zoomout: () => view.setZoom(view.scale / 1.5),
    fit: () => view.fit(),
    blendmore: () => blendBy(1),
    blendless: () => blendBy(-1),
    export() {
      const prompt = document.querySelector("#mg-prompt textarea"),
        whole = state.value(prompt ? prompt.value.trim() : "");
      const file = new Blob([JSON.stringify(whole, null, 2)], { type: "application/json" });
      const link = el("a", { href: URL.createObjectURL(file), download: "timeline.json" });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    },
    import() {
      filePicker.value = "";
      filePicker.click();
    },
    text() {
      tools.text.setAttribute("aria-expanded", String(text.toggle()));
    },
    help: showKeys,
  };
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
    "Blend ",
    small("blendless", "Blend less", "down"),
    el("output", { text: "hard cut" }),
    small("blendmore", "Blend more", "up"),
  );
  const accept = ".json,.txt,application/json,text/plain";
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
    group(tools.blend),
    el("span", { class: "tl-space" }),
    group(tool("zoomout", "Zoom out"), tool("fit", "Fit to width"), tool("zoomin", "Zoom in")),
    group(
      tool("import", "Import a timeline", { icon: "upload" }),
      tool("export", "Export as JSON", { icon: "download" }),
      tool("text", "As text", { iconOnly: false }),
      tool("help", "Keys"),
    ),
    filePicker,
  );
  tools.text.setAttribute("aria-expanded", "false");
  // --- keyboard
  const selectedOr = (run) => (by) => {
    const focused = document.activeElement && document.activeElement.dataset.id;
    if (focused) state.selected = focused;
    return state.find() ? run(by) : false;
  };
  provide({
    ...Object.fromEntries(BY_KEY.map((name) => [name, () => actions[name]()])),
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
    adopt(data) {
      view.forget();
      state.adopt(data);
      view.paint();
    },
  });
  keepInside(filePicker).addEventListener("change", async () => {
    const file = filePicker.files[0];
    if (!file) return;
    if (file.size > 2e6) toast("A timeline file is small; this one is larger than 2 MB.", "error");
    else text.read(await file.text(), true);
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
  on(element, "time", (now) => {
    view.time = now && app.attached === now.job ? now.time : null;
    view.drawHead();
  });
  new ResizeObserver(() => view.resized()).observe(view.scrollNode);
  load(props.value);
  if (app.state) view.follow(app.state.shown);
}
