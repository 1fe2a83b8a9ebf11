// Mouse and touch: blocks and their edges are dragged, the ruler and the film strip are scrubbed.
import { emit, onDocument, onEscape } from "../shared/bus.js";
import * as Model from "./model.js";
import { between, push, ripple, slide, trim } from "./several.js";

const CLICK = 4; // pixels that a click may move
const SCROLL_ZONE = 20; // pixels from the border at which a drag scrolls
const SCROLL_STEP = 8; // pixels a frame

export function listen(view, state, editor, edits) {
  const { laneNode: lane, scrollNode: scroller } = view;
  let drag = null,
    pressed = null;

  lane.addEventListener("pointerdown", (event) => {
    const node = event.target.closest(".tl-block");
    if (event.button || drag) return; // a second finger drags nothing
    if (!node) {
      edits.select(null);
      return;
    }
    editor.close(true);
    const id = node.dataset.id,
      block = state.find(id);
    if (!block) return;
    if (event.shiftKey || event.ctrlKey || event.metaKey) {
      event.preventDefault();
      if (event.shiftKey && state.selected) edits.selectMany(between(state.blocks, state.selected, id));
      else edits.toggle(id);
      return;
    }
    const several = state.chosen.size > 1 && state.chosen.has(id);
    pressed = state.selected === id && !several ? id : null;
    if (several) state.selected = id;
    else edits.select(id, true);
    if (block.end <= view.video.locked) return;
    event.preventDefault();
    const edge = (!several && event.target.dataset.edge) || null;
    drag = {
      several,
      id,
      edge,
      x: event.clientX,
      now: event.clientX,
      grabbed: view.secondAt(event.clientX),
      scrolls: false,
      original: state.blocks,
      block,
      moved: false,
      pointer: event.pointerId,
    };
    view.dragging = true;
    node.setPointerCapture(event.pointerId);
    node.classList.add("dragging");
  });

  lane.addEventListener("pointermove", (event) => {
    if (!drag || event.pointerId !== drag.pointer) return;
    drag.now = event.clientX;
    drag.alt = event.altKey;
    if (Math.abs(drag.now - drag.x) > CLICK) drag.moved = true;
    if (!drag.moved) return; // where seconds are narrow, a click's own tremble would be one
    carry();
    if (!drag.scrolls) scroll();
  });

  /** Bring the blocks to where the pointer is, however far the timeline has scrolled under it. */
  function carry() {
    const by = Math.round(view.secondAt(drag.now) - drag.grabbed),
      bounds = [drag.reach || (drag.reach = view.reach), view.video.locked],
      next = drag.edge ? resized(by, bounds) : moved(by, bounds);
    if (Model.same(next, state.blocks)) return;
    state.blocks = next;
    view.repaint();
  }

  /** Scroll for as long as the pointer is held at a border that it was dragged to. */
  function scroll() {
    if (!drag) return;
    const { left, right } = scroller.getBoundingClientRect(),
      ahead = drag.now > Math.max(drag.x, right - SCROLL_ZONE),
      back = drag.now < Math.min(drag.x, left + SCROLL_ZONE);
    drag.scrolls = ahead || back;
    if (!drag.scrolls) return;
    const before = scroller.scrollLeft;
    scroller.scrollLeft += ahead ? SCROLL_STEP : -SCROLL_STEP;
    if (scroller.scrollLeft !== before) carry();
    requestAnimationFrame(scroll);
  }

  /** With Alt the others stay where they are; else those that are in the way make way. */
  function moved(by, bounds) {
    const { id, original, block, several } = drag,
      ids = several ? state.chosen : new Set([id]);
    if (drag.alt) return slide(original, ids, by, ...bounds);
    if (several) return push(original, ids, by, ...bounds);
    return Model.move(original, id, block.start + by, ...bounds);
  }
  /** Rippling moves all behind; with Alt the neighbours stay; else the neighbour gives room. */
  function resized(by, bounds) {
    const { id, edge, original, block } = drag,
      target = block[edge] + by;
    if (state.ripple) return ripple(original, id, edge, target, bounds[1]);
    if (drag.alt) return trim(original, id, edge, target, ...bounds);
    return Model.resize(original, id, edge, target, ...bounds);
  }

  function end(keep) {
    const { id, moved, original } = drag,
      node = view.nodes.get(id);
    drag = null;
    view.dragging = false;
    if (node) node.classList.remove("dragging");
    if (!keep) state.blocks = original;
    if (!state.commit()) view.paint();
    if (!editor.open) view.focusBlock(id);
    return moved;
  }

  lane.addEventListener("pointerup", (event) => {
    if (!drag || event.pointerId !== drag.pointer) return;
    const { id, several, moved: wasMoved } = drag;
    if (several && !wasMoved) edits.select(id, true);
    if (!end(true) && pressed === id && !event.target.dataset.edge) editor.edit(id);
  });
  for (const name of ["pointercancel", "lostpointercapture"])
    onDocument(lane, name, (event) => {
      if (drag && event.pointerId === drag.pointer) end(false);
    });
  onEscape(
    lane,
    () => drag !== null,
    () => {
      end(false);
      view.say("The drag is cancelled");
    },
  );
  // An edit by key in the midst of a drag would be undone by its next move.
  const wait = (event) => {
    if (!drag) return;
    event.preventDefault();
    event.stopPropagation();
  };
  onDocument(lane, "keydown", wait, true);

  lane.addEventListener("dblclick", (event) => {
    const node = event.target.closest(".tl-block");
    if (node) editor.edit(node.dataset.id);
    else edits.addAt(Math.floor(view.secondAt(event.clientX)));
  });

  // --- scrubbing
  for (const strip of [view.rulerNode, view.filmNode]) {
    let scrubbing = null;
    const scrub = (event) => {
      view.time = Model.clamp(view.secondAt(event.clientX), 0, view.shown);
      emit("seek", { time: view.time, scrubbing: scrubbing !== null });
      view.drawHead();
    };
    strip.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      event.preventDefault();
      scrubbing = event.pointerId;
      strip.setPointerCapture(event.pointerId);
      scrub(event);
    });
    strip.addEventListener("pointermove", (event) => {
      if (scrubbing === event.pointerId) scrub(event);
    });
    for (const name of ["pointerup", "pointercancel"])
      strip.addEventListener(name, (event) => {
        if (scrubbing !== event.pointerId) return;
        scrubbing = null;
        emit("seek", { time: view.time, scrubbing: false });
      });
  }

  const zoom = (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    view.setZoom(view.scale * (event.deltaY < 0 ? 1.15 : 1 / 1.15), event.clientX);
  };
  scroller.addEventListener("wheel", zoom, { passive: false });
  scroller.addEventListener("scroll", () => view.drawRuler(), { passive: true });
  return { busy: () => drag !== null };
}
