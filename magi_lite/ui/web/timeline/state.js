// What the timeline holds, and its history; nothing of the page.
import * as Model from "./model.js";
import { segment } from "./shots.js";

const DEPTH = 200; // steps that can be undone

export class State {
  /** @param changed called with the global prompt (of an import, else "") after every change that counts. */
  constructor(changed) {
    Object.assign(this, { changed, blocks: [], blend: 0, gaps: "hold", selected: null });
    this.chosen = new Set(); // ids of all selected blocks; `selected` is the one that was clicked last
    this.ripple = false; // whether blocks behind an edit move with it
    this.markers = []; // {at: seconds, name}
    this.earlier = []; // blends of seconds that a redirect found settled: kept, not edited
    Object.assign(this, { past: [], future: [], committed: null });
    this.seen = { selected: null, chosen: [] }; // the selection that the page shows
  }

  /** The timeline as the server reads it. */
  value(globalPrompt = "", blocks = this.blocks) {
    const segments = blocks.map(segment);
    const value = { version: 1, global_prompt: globalPrompt, blend: this.blend, gaps: this.gaps, segments };
    if (this.earlier.length) value.earlier_blends = this.earlier;
    if (this.markers.length) value.markers = this.markers;
    return value;
  }

  /** Select one block, or none; `more` are selected with it. */
  select(id, more = []) {
    this.selected = id;
    this.chosen = new Set(id ? [id, ...more] : more);
  }

  find(id = this.selected) {
    return Model.find(this.blocks, id);
  }

  /** The page shows this selection now: an undo of the next edit, which may select anew, comes back to it. */
  show() {
    this.seen = { selected: this.selected, chosen: [...this.chosen] };
  }

  /** Take over what came from outside; what changes by it can be undone, but is no edit of ours. */
  load(data) {
    const source = data && data.segments ? data : { segments: [] };
    const old = this.blocks;
    this.blocks = Model.sort(
      source.segments.map((s, i) => {
        const id = old[i] && old[i].start === s.start ? old[i].id : Model.newId(); // focus and colour stay
        return { id, ...segment(s) };
      }),
    );
    this.blend = source.blend || 0;
    this.gaps = source.gaps || "hold";
    this.earlier = source.earlier_blends || [];
    this.markers = source.markers || [];
    this.#forgetGone();
    const now = this.#snapshot();
    if (this.committed !== null && this.committed !== now) this.#remember(this.committed);
    this.committed = now;
  }

  /** Replace everything by an imported or typed timeline; text has no markers, so they stay. True if it changed. */
  adopt(data) {
    this.blocks = Model.sort(data.segments.map((s) => ({ id: Model.newId(), ...s })));
    this.blend = data.blend;
    this.gaps = data.gaps;
    this.earlier = data.earlier_blends || [];
    this.markers = data.markers || this.markers;
    this.select(null);
    return this.commit(data.global_prompt);
  }

  /** Blocks as an edit leaves them; true if anything changed. */
  apply(blocks) {
    if (Model.same(blocks, this.blocks)) return false;
    this.blocks = blocks;
    return this.commit();
  }

  /** Keep what was changed as one step of the history; true if anything changed. */
  commit(globalPrompt = "") {
    const now = this.#snapshot();
    if (now === this.committed && !globalPrompt) return false;
    if (now !== this.committed) this.#remember(this.committed);
    this.committed = now;
    this.changed(globalPrompt);
    return true;
  }

  undo() {
    return this.#step(this.past, this.future);
  }

  redo() {
    return this.#step(this.future, this.past);
  }

  #forgetGone() {
    if (!this.find()) this.selected = null;
    const ids = new Set(this.blocks.map((block) => block.id));
    this.chosen = new Set([...this.chosen].filter((id) => ids.has(id)));
    if (this.selected) this.chosen.add(this.selected);
  }

  #snapshot() {
    const { blocks, blend, gaps, earlier, markers } = this;
    return JSON.stringify({ blocks, blend, gaps, earlier, markers });
  }

  #remember(snapshot) {
    this.past.push({ snapshot, ...this.seen });
    if (this.past.length > DEPTH) this.past.shift();
    this.future = [];
  }

  #step(from, to) {
    if (!from.length) return false;
    to.push({ snapshot: this.committed, selected: this.selected, chosen: [...this.chosen] });
    const { snapshot, selected, chosen } = from.pop();
    this.committed = snapshot;
    Object.assign(this, JSON.parse(snapshot));
    this.select(selected, chosen);
    this.#forgetGone();
    this.changed("");
    return true;
  }
}
