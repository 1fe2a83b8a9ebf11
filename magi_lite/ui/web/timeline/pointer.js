// Mouse and touch: blocks and their edges are dragged, the ruler and the film strip are scrubbed.
import { emit, onEscape } from "../shared/bus.js";
import * as Model from "./model.js";
import { between, push, ripple, slide, trim } from "./several.js";

const CLICK = 4; // pixels that a click may move
const SCROLL_ZONE = 20; // pixels from the border at which a drag scrolls

export function listen(view, state, editor, edits) {
  const { laneNode: lane, scrollNode: scroller } = view;
  let drag = null,
    pressed = null;

  lane.addEventListener("pointerdown", (event) => {
    const node = event.target.closest(".tl-block");
    if (event.button) return;
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
    const { edge } = drag,
      by = Math.round((event.clientX - drag.x) / view.scale),
      bounds = [drag.reach || (drag.reach = view.reach), view.video.locked];
    if (Math.abs(event.clientX - drag.x) > CLICK) drag.moved = true;
    const next = edge ? resized(event, by, bounds) : moved(event, by, bounds);
    if (!Model.same(next, state.blocks)) {
      state.blocks = next;
      view.repaint();
    }
    const rect = scroller.getBoundingClientRect();
    if (event.clientX > rect.right - SCROLL_ZONE) scroller.scrollLeft += 8;
    else if (event.clientX < rect.left + SCROLL_ZONE) scroller.scrollLeft -= 8;
  });

  /** With Alt the others stay where they are; else those that are in the way make way. */
  function moved(event, by, bounds) {
    const { id, original, block, several } = drag,
      ids = several ? state.chosen : new Set([id]);
    if (event.altKey) return slide(original, ids, by, ...bounds);
    if (several) return push(original, ids, by, ...bounds);
    return Model.move(original, id, block.start + by, ...bounds);
  }
  /** Rippling moves all behind; with Alt the neighbours stay; else the neighbour gives room. */
  function resized(event, by, bounds) {
    const { id, edge, original, block } = drag,
      target = block[edge] + by;
    if (state.ripple) return ripple(original, id, edge, target, bounds[1]);
    if (event.altKey) return trim(original, id, edge, target, ...bounds);
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
  lane.addEventListener("pointercancel", (event) => {
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
