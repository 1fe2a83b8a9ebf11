// Every video as a light table: searched, filtered, sorted, grouped by version, in pages; several can be selected, and
// what is thrown away lies in a bin first.
import { call, on, onDocument, toast } from "../shared/bus.js";
import { button, el, keepFocus, keepInside, refill, sure } from "../shared/dom.js";
import { count } from "../shared/format.js";
import { keep, recall } from "../shared/store.js";
import { openDetail } from "./detail.js";
import { click, kept } from "./selection.js";
import { nothing, tile } from "./tile.js";

const PAGE = 60;
const PAUSE = 250; // milliseconds without a key before a search is made
const KEY = "magi-gallery";
const EMPTY = "No videos yet. The first one you make appears here.";
const FILTERS = { all: "All", starred: "Starred", finished: "Finished", unfinished: "Not finished" };
const ORDERS = { newest: "Newest", oldest: "Oldest", name: "Name", longest: "Longest", largest: "Largest" };

export function mount({ element, props, trigger, server, upload }) {
  const root = element.querySelector(".ga"),
    part = (name) => root.querySelector(".ga-" + name),
    grid = part("grid"),
    none = root.querySelector(".mg-empty");
  let version = null,
    visible = false,
    inBin = false,
    items = [],
    total = 0,
    chosen = new Set(),
    anchor = null,
    asked = 0,
    family = null; // a video whose versions alone are shown
  const tiles = new Map(); // id -> { key, node }: a tile stays while its video does, with the focus and what it plays

  // --- tools
  const remembered = recall(KEY) || {};
  const choice = (label, options, value) => {
    const node = el(
      "select",
      { class: "mg-input", "aria-label": label },
      ...Object.entries(options).map(([name, text]) => el("option", { value: name, text })),
    );
    if (value in options) node.value = value;
    keepInside(node).addEventListener("change", again);
    return node;
  };
  const search = el("input", {
    type: "search",
    class: "mg-input ga-search",
    placeholder: "Search prompts, names, seeds",
    "aria-label": "Search prompts, names, seeds and models",
  });
  let timer = null;
  keepInside(search).addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(again, PAUSE);
  });
  const show = choice("Show", FILTERS, remembered.show),
    sort = choice("Sort by", ORDERS, remembered.sort),
    model = choice("Model", { "": "Every model" }, ""),
    grouped = el("input", { type: "checkbox", class: "mg-check", checked: remembered.grouped !== false });
  keepInside(grouped).addEventListener("change", again);
  const binButton = button("Bin", "trash", () => go(true, null), { class: "mg-fill", action: "bin" });
  const back = button("Back to all videos", "undo", () => go(false, null), { class: "mg-soft", action: "back" });
  const emptyBin = button("Empty the bin", "trash", () => askEmpty(null), { class: "mg-danger", action: "empty-bin" });
  part("tools").append(
    search,
    show,
    model,
    sort,
    el("label", { class: "mg-row mg-small" }, grouped, "Group versions"),
    el("span", { class: "mg-grow" }),
    back,
    emptyBin,
    binButton,
  );
  back.hidden = emptyBin.hidden = true;

  function query() {
    if (family) return { versions_of: family };
    return {
      search: search.value,
      show: show.value,
      model: model.value,
      sort: sort.value,
      grouped: grouped.checked,
    };
  }
  function again() {
    keep(KEY, { show: show.value, sort: sort.value, grouped: grouped.checked });
    refresh(PAGE);
  }
  /** Show another list: the bin, the versions of one video, or all videos. */
  function go(toBin, versionsOf) {
    inBin = toBin;
    family = versionsOf;
    chosen = new Set();
    refresh(PAGE);
  }

  // --- the list
  /** Read the list again, as far as it was shown. */
  async function refresh(shown = items.length) {
    const mine = (asked += 1),
      limit = PAGE * Math.max(1, Math.ceil(shown / PAGE));
    const answer = await call(inBin ? server.binned({}) : server.gallery({ ...query(), limit }));
    if (mine === asked && answer.videos) take(answer, []);
  }
  async function more() {
    const mine = (asked += 1),
      answer = await call(server.gallery({ ...query(), offset: items.length, limit: PAGE }));
    if (mine === asked && answer.videos) take(answer, items);
  }
  function take(answer, before) {
    items = [...before, ...answer.videos];
    total = inBin ? items.length : answer.total;
    if (answer.models) offerModels(answer.models);
    draw(answer);
  }
  function offerModels(models) {
    const known = [...model.options].map((option) => option.value).slice(1);
    if (JSON.stringify(known) === JSON.stringify(models)) return;
    const was = model.value;
    model.replaceChildren(
      el("option", { value: "", text: "Every model" }),
      ...models.map((name) => el("option", { value: name, text: name })),
    );
    if (models.includes(was)) model.value = was;
  }
  /** Do what may take the control with the focus away; the focus stays on this panel. */
  function stay(change) {
    const was = root.contains(document.activeElement);
    change();
    const now = document.activeElement;
    if (!was || (root.contains(now) && now.getClientRects().length)) return;
    const next = back.hidden ? grid.querySelector(".ga-item") || search : back;
    next.focus({ preventScroll: true });
  }
  const draw = (answer) => stay(() => redraw(answer));
  function redraw(answer) {
    back.hidden = !inBin && !family;
    emptyBin.hidden = !inBin || !items.length;
    for (const node of [search, show, model, sort, grouped.parentElement]) node.hidden = inBin || Boolean(family);
    binButton.hidden = inBin || Boolean(family);
    binButton.querySelector("span").textContent = answer.binned ? `Bin (${answer.binned})` : "Bin";
    drawTiles();
    const searching = !inBin && answer.all > 0;
    none.hidden = items.length > 0;
    none.replaceChildren(
      ...nothing(inBin ? "The bin is empty." : searching ? "No video fits this search and filter." : EMPTY),
    );
    part("count").textContent = items.length
      ? `${inBin ? "In the bin: " : ""}${count(total, "video")}${answer.folder ? ` · ${answer.folder}` : ""}`
      : "";
    const rest = total - items.length;
    refill(
      part("more"),
      ...(rest > 0 ? [button(`Show more (${rest})`, "down", more, { class: "mg-fill", action: "more" })] : []),
    );
    select(
      kept(
        chosen,
        items.map((item) => item.id),
      ),
    );
  }
  function drawTiles() {
    const nodes = items.map((item) => {
      const key = JSON.stringify([inBin, item]),
        old = tiles.get(item.id);
      if (!old || old.key !== key) tiles.set(item.id, { key, node: tile(item, inBin ? inBinActs : acts) });
      return tiles.get(item.id).node;
    });
    const shown = new Set(nodes);
    for (const [id, { node }] of tiles) if (!shown.has(node)) tiles.delete(id);
    keepFocus(grid, () => {
      for (const node of [...grid.children]) if (!shown.has(node)) node.remove();
      nodes.forEach((node, i) => {
        if (grid.children[i] !== node) grid.insertBefore(node, grid.children[i] || null);
      });
    });
  }

  // --- what is done with one video
  const acts = {
    open: (item) =>
      openDetail({ server, upload }, item, {
        use(id) {
          props.value = { use: id };
          trigger("use_settings");
        },
        changed: refresh,
        throwAway,
      }),
    choose,
    async star(item) {
      if (!(await call(server.label({ video: item.id, starred: !item.starred }))).error) refresh();
    },
    expand: (item) => go(false, item.id),
  };
  const inBinActs = { open: (item) => choose(item, {}), choose };

  // --- what is done with several
  function choose(item, event) {
    const order = items.map((one) => one.id),
      now = click(chosen, order, item.id, anchor, event.shiftKey);
    anchor = now.anchor;
    select(now.chosen);
  }
  function select(ids) {
    chosen = new Set(ids);
    for (const [id, { node }] of tiles) {
      node.classList.toggle("chosen", chosen.has(id));
      node.querySelector(".ga-tick").checked = chosen.has(id);
    }
    stay(drawChosen);
  }
  const selectAll = () => select(items.map((item) => item.id));
  function drawChosen() {
    const bar = part("chosen"),
      ids = [...chosen];
    bar.hidden = !ids.length;
    grid.classList.toggle("choosing", ids.length > 0);
    if (!ids.length) return;
    const clear = button("Clear the selection", "close", () => select([]), { text: "Clear" });
    const all = button("Select all shown", "check", selectAll, { class: "mg-fill", action: "select-all" });
    const list = inBin
      ? [
          button("Put back", "undo", () => restore(ids), { class: "mg-primary", action: "restore" }),
          button("Delete for good", "trash", () => askEmpty(ids), { class: "mg-danger", action: "delete-for-good" }),
        ]
      : [
          button("Star", "star", () => starAll(ids, true), { class: "mg-fill", action: "star-all" }),
          button("Remove stars", null, () => starAll(ids, false), { class: "mg-fill" }),
          button("Move to the bin", "trash", () => throwAway(ids), { class: "mg-danger", action: "throw" }),
        ];
    refill(bar, el("b", { text: `${ids.length} selected` }), ...list, all, el("span", { class: "mg-grow" }), clear);
  }
  async function starAll(ids, starred) {
    for (const video of ids) if ((await call(server.label({ video, starred }))).error) break;
    refresh();
  }
  async function throwAway(ids) {
    const families = items.filter((item) => ids.includes(item.id)).flatMap((item) => item.versions),
      left = new Set(families.filter((id) => !ids.includes(id))).size,
      of = ids.length > 1 ? "them" : "it",
      others = left ? ` ${count(left, "other version")} of ${of} ${left > 1 ? "stay" : "stays"} here.` : "";
    const answer = await call(server.bin({ videos: ids }));
    if (answer.error) return;
    chosen = new Set();
    refresh();
    toast(`${count(ids.length, "video")} moved to the bin.${others}`, "info", {
      label: "Undo",
      name: "undo-bin",
      run: () => restore(ids),
    });
  }
  async function restore(ids) {
    if ((await call(server.restore({ videos: ids }))).error) return;
    chosen = new Set();
    refresh();
  }
  async function askEmpty(ids) {
    const many = ids ? ids.length : items.length;
    const sentence =
      many === 1
        ? "Delete this video? It cannot be extended or redone afterwards."
        : `Delete ${many} videos? They cannot be extended or redone afterwards.`;
    if (!(await sure("Delete for good", sentence, "Delete"))) return;
    if ((await call(server.empty_bin({ videos: ids }))).error) return;
    chosen = new Set();
    refresh();
  }

  onDocument(element, "keydown", (event) => {
    if (
      !visible ||
      document.querySelector("dialog[open]") ||
      event.target.closest("input:not([type=checkbox]), select, textarea")
    )
      return;
    const ids = [...chosen];
    if (event.key === "Escape" && ids.length) select([]);
    else if (event.key === "Delete" && ids.length) inBin ? askEmpty(ids) : throwAway(ids);
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) selectAll();
    else return;
    event.preventDefault();
    event.stopImmediatePropagation();
  });
  new IntersectionObserver((entries) => {
    visible = entries[0].isIntersecting;
    if (visible) refresh();
  }).observe(root);
  new IntersectionObserver((entries) => {
    const next = part("more").querySelector("button");
    if (entries[0].isIntersecting && next) more();
  }).observe(part("more"));
  on(element, "state", (state) => {
    if (state.gallery !== version) {
      version = state.gallery;
      if (visible) refresh();
    }
  });
}
