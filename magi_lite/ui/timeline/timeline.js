// Behaviour: pointer, keyboard, tools, history, and what goes to and comes from the server.
let drag = null, past = [], future = [];

// --- history and value
const snapshot = () => JSON.stringify({ blocks, blend, gaps });
let committed = null;
function value(globalPrompt) {
  return { version: 1, global_prompt: globalPrompt || "", blend, gaps, segments: blocks.map(({ start, end, prompt }) => ({ start, end, prompt })) };
}
function commit(globalPrompt) {
  const now = snapshot();
  if (now === committed && !globalPrompt) { paint(); return; }
  past.push(committed); if (past.length > 200) past.shift();
  future = []; committed = now;
  publish(globalPrompt);
}
function publish(globalPrompt) {
  props.value = magi.timeline = value(globalPrompt);
  trigger("commit");
  if (running && magi.attached) magi.emit("redirect", { job: magi.attached, timeline: props.value });
  paint(); refreshText();
}
function apply(next) { if (!Model.same(next, blocks)) { blocks = next; commit(); } else paint(); }
function restore(text) { ({ blocks, blend, gaps } = JSON.parse(text)); committed = text; if (!Model.find(blocks, selected)) selected = null; publish(); }
function undo() { if (!past.length) return; future.push(committed); restore(past.pop()); say("Undone"); }
function redo() { if (!future.length) return; past.push(committed); restore(future.pop()); say("Redone"); }
function load(data) {
  const source = data && data.segments ? data : { segments: [] };
  const fresh = source.segments.map((s, i) => {
    const old = blocks[i];                                        // keep identity (focus, colour) where nothing moved
    return { id: old && old.start === s.start ? old.id : Model.newId(), start: s.start, end: s.end, prompt: s.prompt };
  });
  blocks = Model.sort(fresh); blend = source.blend || 0; gaps = source.gaps || "hold";
  if (!Model.find(blocks, selected)) selected = null;
  const now = snapshot();
  if (committed !== null && committed !== now) { past.push(committed); future = []; }
  committed = now;
  magi.timeline = value();
  paint(); refreshText();
}

// --- actions
function select(id, focus) { selected = id; paint(); if (focus) focusBlock(id); }
const atHead = () => (time === null ? null : Math.round(time));
const actions = {
  add() {
    const from = selected ? Model.find(blocks, selected).end : 0;
    const result = Model.add(blocks, from, 2, "", limit(), locked);
    if (!result.id) { say("There is no room for another block."); return; }
    blocks = result.blocks; selected = result.id; commit(); openEditor(selected);
  },
  split() { const id = selected; if (id) { apply(Model.split(blocks, id, atHead(), locked)); focusBlock(id); say("Split"); } },
  merge() {
    if (!selected) return;
    const i = blocks.findIndex((b) => b.id === selected), next = Model.merge(blocks, selected, locked);
    if (!Model.find(next, selected)) selected = blocks[i - 1].id;
    apply(next); focusBlock(selected); say("Merged");
  },
  duplicate() {
    const block = Model.find(blocks, selected);
    if (!block) return;
    const result = Model.add(blocks, block.end, block.end - block.start, block.prompt, limit(), locked);
    if (!result.id) { say("There is no room for a copy."); return; }
    selected = result.id; apply(result.blocks); focusBlock(selected); say("Duplicated");
  },
  delete() {
    const i = blocks.findIndex((b) => b.id === selected), next = Model.remove(blocks, selected, locked);
    if (i < 0 || next.length === blocks.length) return;
    selected = next.length ? next[Math.min(i, next.length - 1)].id : null;
    apply(next); if (selected) focusBlock(selected); say("Deleted");
  },
  undo, redo,
  zoomin() { setZoom(scale() * 1.5); }, zoomout() { setZoom(scale() / 1.5); }, fit() { zoom = fitScale(); rulerKey = ""; paint(); },
  blendmore() { blend = Math.min(8, blend + 1); commit(); }, blendless() { blend = Math.max(0, blend - 1); commit(); },
  async export() {
    const blob = new Blob([JSON.stringify(value(), null, 2)], { type: "application/json" });
    const link = el("a", { href: URL.createObjectURL(blob), download: "timeline.json" });
    link.click(); setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  },
  import() { filePicker.value = ""; filePicker.click(); },
  text() { const panel = q("text"); panel.hidden = !panel.hidden; tools.text.setAttribute("aria-expanded", String(!panel.hidden)); refreshText(); },
  help() { help.open ? help.close() : help.showModal(); },
};
function setZoom(next, anchorX) {
  const rect = scroller.getBoundingClientRect(), x = (anchorX === undefined ? rect.left + rect.width / 2 : anchorX);
  const second = secondAt(x);
  zoom = Model.clamp(next, fitScale(), 320);
  paint(); scroller.scrollLeft = second * scale() - (x - rect.left); drawRuler();
}
function resizeBy(edge, by) {
  const block = Model.find(blocks, selected);
  apply(Model.resize(blocks, selected, edge, block[edge] + by, limit(), locked));
  const now = Model.find(blocks, selected); say(`Seconds ${now.start} to ${now.end}`);
}
function moveBy(by) {
  apply(Model.move(blocks, selected, Model.find(blocks, selected).start + by, limit(), locked));
  const now = Model.find(blocks, selected); focusBlock(selected); say(`Seconds ${now.start} to ${now.end}`);
}
function step(by) {
  const i = blocks.findIndex((b) => b.id === selected), next = blocks[Model.clamp(i + by, 0, blocks.length - 1)];
  if (next) select(next.id, true);
}

// --- tools
const tools = {};
const tool = (name, label, extra) => (tools[name] = magi.button(label, extra && extra.icon || name, () => actions[name](), { iconOnly: true, action: name, ...extra }));
const group = (...children) => el("span", { class: "tl-group" }, ...children);
tools.blend = el("span", { class: "tl-blend", title: "How many seconds mix the old words into the new ones after a change" }, "Blend ",
  magi.button("Blend less", "down", actions.blendless, { iconOnly: true, action: "blendless" }), el("output", { text: "hard cut" }),
  magi.button("Blend more", "up", actions.blendmore, { iconOnly: true, action: "blendmore" }));
const filePicker = el("input", { type: "file", accept: ".json,.txt,application/json,text/plain", hidden: true, tabindex: "-1", "aria-label": "Timeline file" });
bar.append(
  group(tool("add", "Add block", { iconOnly: false, class: "mg-soft" })),
  group(tool("split", "Split (S)"), tool("merge", "Merge with the next (M)"), tool("duplicate", "Duplicate (D)", { icon: "copy" }), tool("delete", "Delete (Del)", { icon: "trash" })),
  group(tool("undo", "Undo (Ctrl+Z)"), tool("redo", "Redo (Ctrl+Y)")), group(tools.blend),
  el("span", { class: "tl-space" }),
  group(tool("zoomout", "Zoom out"), tool("fit", "Fit to width"), tool("zoomin", "Zoom in")),
  group(tool("import", "Import a timeline", { icon: "upload" }), tool("export", "Export as JSON", { icon: "download" }), tool("text", "As text", { iconOnly: false }), tool("help", "Keys")), filePicker);
tools.text.setAttribute("aria-expanded", "false");
const KEYS = [["← →", "previous or next block"], ["Alt + ← →", "move the block"], ["Shift + ← →", "move its end"], ["Alt + Shift + ← →", "move its start"],
  ["Enter", "write its words"], ["N", "new block"], ["S", "split (at the playhead)"], ["M", "merge with the next"], ["D", "duplicate"], ["Delete", "delete"],
  ["Ctrl + Z, Ctrl + Y", "undo, redo"], ["+ − 0", "zoom in, out, fit"], ["Ctrl + wheel", "zoom"]];
const help = el("dialog", { class: "mg-dialog tl-keys", "aria-label": "Timeline keys" }, el("h3", { text: "Timeline keys" }),
  el("dl", {}, ...KEYS.flatMap(([key, what]) => [el("dt", { text: key }), el("dd", { text: what })])),
  magi.button("Close", null, () => help.close()));
root.append(help);

// --- pointer
let pressed = null;
lane.addEventListener("pointerdown", (event) => {
  const node = event.target.closest(".tl-block");
  if (event.button) return;
  if (!node) { select(null); return; }
  closeEditor(true);
  const id = node.dataset.id, block = Model.find(blocks, id);
  if (!block) return;
  pressed = selected === id ? id : null;
  select(id, true);
  if (block.end <= locked) return;
  event.preventDefault();
  drag = { id, edge: event.target.dataset.edge || null, x: event.clientX, original: blocks, block, moved: false, pointer: event.pointerId };
  node.setPointerCapture(event.pointerId);
  node.classList.add("dragging");
});
lane.addEventListener("pointermove", (event) => {
  if (!drag || event.pointerId !== drag.pointer) return;
  const by = Math.round((event.clientX - drag.x) / scale());
  if (Math.abs(event.clientX - drag.x) > 4) drag.moved = true;
  const next = drag.edge ? Model.resize(drag.original, drag.id, drag.edge, drag.block[drag.edge] + by, limit(), locked)
    : Model.move(drag.original, drag.id, drag.block.start + by, limit(), locked);
  if (!Model.same(next, blocks)) { blocks = next; repaint(); }
  const rect = scroller.getBoundingClientRect();
  if (event.clientX > rect.right - 20) scroller.scrollLeft += 8; else if (event.clientX < rect.left + 20) scroller.scrollLeft -= 8;
});
function endDrag(event) {
  if (!drag || event.pointerId !== drag.pointer) return;
  const { id, moved } = drag, node = nodes.get(id);
  if (event.type === "pointercancel") blocks = drag.original;
  drag = null;
  if (node) node.classList.remove("dragging");
  if (moved) commit(); else { paint(); if (pressed === id && event.type === "pointerup") openEditor(id); }
  focusUnlessEditing(id);
}
function focusUnlessEditing(id) { if (!editor) focusBlock(id); }
lane.addEventListener("pointerup", endDrag); lane.addEventListener("pointercancel", endDrag);
lane.addEventListener("dblclick", (event) => {
  const node = event.target.closest(".tl-block");
  if (node) { openEditor(node.dataset.id); return; }
  const result = Model.add(blocks, Math.floor(secondAt(event.clientX)), 2, "", limit(), locked);
  if (result.id) { blocks = result.blocks; selected = result.id; commit(); openEditor(selected); }
});
ruler.addEventListener("pointerdown", (event) => { time = Model.clamp(secondAt(event.clientX), 0, shown()); magi.emit("seek", { time }); drawHead(); });
film.addEventListener("pointerdown", (event) => magi.emit("seek", { time: secondAt(event.clientX) }));
scroller.addEventListener("wheel", (event) => { if (event.ctrlKey) { event.preventDefault(); setZoom(scale() * (event.deltaY < 0 ? 1.15 : 1 / 1.15), event.clientX); } }, { passive: false });
scroller.addEventListener("scroll", drawRuler, { passive: true });

// --- keyboard
lane.addEventListener("keydown", (event) => {
  const key = event.key, ctrl = event.ctrlKey || event.metaKey, side = key === "ArrowLeft" ? -1 : key === "ArrowRight" ? 1 : 0;
  const focused = event.target.dataset && event.target.dataset.id;
  if (focused && focused !== selected) selected = focused;
  const name = { s: "split", m: "merge", d: "duplicate", n: "add", Delete: "delete", Backspace: "delete", "+": "zoomin", "=": "zoomin", "-": "zoomout", 0: "fit" }[key.length === 1 ? key.toLowerCase() : key];
  if (ctrl && key.toLowerCase() === "z") event.shiftKey ? redo() : undo();
  else if (ctrl && key.toLowerCase() === "y") redo();
  else if (ctrl) return;
  else if (side && selected && event.altKey && event.shiftKey) resizeBy("start", side);
  else if (side && selected && event.shiftKey) resizeBy("end", side);
  else if (side && selected && event.altKey) moveBy(side);
  else if (side) step(side);
  else if (key === "Home" || key === "End") step(key === "Home" ? -blocks.length : blocks.length);
  else if ((key === "Enter" || key === "F2" || key === " ") && selected) openEditor(selected);
  else if (name && !event.altKey) actions[name]();
  else return;
  event.preventDefault(); event.stopPropagation();
});
root.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || /TEXTAREA|INPUT/.test(event.target.tagName)) return;
  if (event.key.toLowerCase() === "z") { event.shiftKey ? redo() : undo(); event.preventDefault(); }
});

// --- text view: the server's own parser and printer, so that there is one grammar
const shorthand = q("shorthand"), problem = q("error");
let textTimer = null, lastRead = null;
async function refreshText() {
  if (q("text").hidden || document.activeElement === shorthand) return;
  const answer = await server.print_timeline(value());
  if (document.activeElement !== shorthand && answer && answer.text !== undefined) { shorthand.value = lastRead = answer.text; problem.textContent = ""; }
}
async function readText(text, push) {
  const answer = await server.parse_timeline({ text });
  problem.textContent = (answer && answer.error) || "";
  if (!answer || answer.error) { if (push) magi.toast(answer ? answer.error : "The timeline could not be read.", "error"); return; }
  lastRead = text;
  adopt(answer.timeline);
}
function adopt(data) {
  blocks = Model.sort(data.segments.map((s) => ({ id: Model.newId(), ...s }))); blend = data.blend; gaps = data.gaps;
  nodes.forEach((node) => node.remove()); nodes.clear(); hueCount = 0;
  selected = null; commit(data.global_prompt);
}
shorthand.addEventListener("input", (event) => { event.stopPropagation(); clearTimeout(textTimer); textTimer = setTimeout(() => readText(shorthand.value), 350); });
shorthand.addEventListener("blur", () => { clearTimeout(textTimer); if (!problem.textContent) (shorthand.value === lastRead ? Promise.resolve() : readText(shorthand.value)).then(refreshText); });
for (const node of [shorthand, filePicker]) node.addEventListener("change", (event) => event.stopPropagation());
filePicker.addEventListener("change", async () => {
  const file = filePicker.files[0];
  if (!file) return;
  if (file.size > 2e6) { magi.toast("A timeline file is small; this one is larger than 2 MB.", "error"); return; }
  readText(await file.text(), true);
});

// --- news from Python (value, seconds) and from the server's state (what is rendered)
watch(["value", "seconds"], () => { if (drag || editor) return; if (!Model.same(props.value, value())) load(props.value); rulerKey = ""; paint(); });
magi.on(element, "state", (state) => {
  const job = state.shown, attached = job && magi.attached === job.id;
  running = Boolean(attached && job.state === "running");
  locked = running ? job.locked : 0;
  done = attached ? job.done : 0;
  film.folder = attached && job.folder_url;
  if (!drag) repaint();
});
magi.on(element, "time", (now) => { time = now && magi.attached === now.job ? now.time : null; drawHead(); });
new ResizeObserver(() => { rulerKey = ""; filmKey = ""; repaint(); }).observe(scroller);
load(props.value);
if (magi.state) magi.emit("state", magi.state);
