// Text in place: a field over the block, so that no interactive element lies inside another.
import { emit, toast } from "../shared/bus.js";
import { el, keepInside } from "../shared/dom.js";
import { combination } from "../shared/keys.js";
import * as Model from "./model.js";

const LEAST_WIDTH = 190;

export class Editor {
  /** @param apply takes the blocks after an edit. */
  constructor(view, state, apply) {
    Object.assign(this, { view, state, apply, open: null });
    view.onPaint.push(() => this.place());
  }

  place() {
    if (!this.open) return;
    const block = this.state.find(this.open.id);
    if (!block) {
      this.close(true);
      return;
    }
    const { scale, shown } = this.view,
      width = Math.max(LEAST_WIDTH, (block.end - block.start) * scale - 2),
      left = Math.max(0, Math.min(block.start * scale, shown * scale - width));
    this.open.field.style.left = left + "px";
    this.open.field.style.width = width + "px";
    this.open.field.style.top = this.view.laneNode.offsetTop + "px";
    this.open.field.style.height = this.view.laneNode.offsetHeight + "px";
  }

  edit(id) {
    const { view, state } = this,
      block = state.find(id);
    if (!block) return;
    if (block.end <= view.video.locked) {
      toast("This block has begun; its prompt can no longer change. Redo it when the video is finished.", "warning");
      return;
    }
    this.close(true);
    const label = `Prompt for seconds ${block.start} to ${block.end}`;
    const box = el("textarea", { class: "tl-editor", "aria-label": label, placeholder: "What happens here?" });
    box.value = block.prompt;
    this.open = { id, field: box };
    box.addEventListener("keydown", (event) => {
      const generates = combination(event) === "Ctrl+Enter" && !view.video.running; // what is written is made then
      if (generates) {
        this.close(true);
        return;
      }
      event.stopPropagation();
      const keep = event.key === "Enter" && !event.shiftKey;
      if (!keep && event.key !== "Escape") return;
      event.preventDefault();
      this.close(keep);
      view.focusBlock(state.selected);
    });
    box.addEventListener("blur", () => this.close(true));
    box.addEventListener("input", () => emit("typing", state.value("", this.written().blocks)));
    keepInside(box, ["input", "change", "pointerdown", "click", "dblclick"]);
    view.canvasNode.append(box);
    this.place();
    box.focus();
    box.select();
  }

  /** The blocks with what is typed. */
  written() {
    const { id, field } = this.open;
    return Model.write(this.state.blocks, id, field.value.trim(), this.view.video.locked);
  }

  close(keep) {
    if (!this.open) return;
    const { id, field } = this.open,
      { view, state } = this,
      text = field.value.trim(),
      block = state.find(id),
      result = this.written();
    this.open = null;
    field.remove();
    if (!keep) {
      emit("typing", null);
      return;
    }
    if (block ? result.blocks === state.blocks && text !== block.prompt : text) {
      toast(`This block has begun or is gone; what you typed was not used: “${text}”`, "error", {
        label: "Copy it",
        name: "copy-typed",
        run: () => navigator.clipboard?.writeText(text),
      });
      return;
    }
    if (result.id !== id) {
      state.selected = result.id;
      view.hues.set(result.id, view.hue(id));
    }
    this.apply(result.blocks);
  }
}
