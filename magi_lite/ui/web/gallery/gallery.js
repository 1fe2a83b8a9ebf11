// Every video as a light table: searched, filtered, sorted, grouped by version, in pages; several can be selected, and
// what is thrown away lies in a bin first.
import { call, on, onDocument, toast } from "../shared/bus.js";
import { button, el, keepInside, sure } from "../shared/dom.js";
import { count } from "../shared/format.js";
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
    family = null; // the versions of one video, where only these are shown

  // --- tools
  const remembered = JSON.parse(localStorage.getItem(KEY) || "{}");
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
  const binButton = button("Bin", "trash", toggleBin, { class: "mg-fill", action: "bin" });
  const back = button("Back to all videos", "undo", leave, { class: "mg-soft", action: "back" });
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
    return {
      search: search.value,
      show: show.value,
      model: model.value,
      sort: sort.value,
      grouped: grouped.checked && !family,
      limit: PAGE,
    };
  }
  function again() {
    localStorage.setItem(KEY, JSON.stringify({ show: show.value, sort: sort.value, grouped: grouped.checked }));
    refresh();
  }
  function toggleBin() {
    inBin = !inBin;
    family = null;
    chosen = new Set();
    refresh();
  }
  function leave() {
    inBin = false;
    family = null;
    chosen = new Set();
    refresh();
  }

  // --- the list
  /** Read the list again, as far as it was shown. */
  async function refresh() {
    const mine = (asked += 1);
    if (inBin) {
      const answer = await call(server.binned({}));
      if (mine !== asked || !answer.videos) return;
      items = answer.videos;
      total = items.length;
      draw({ binned: total });
      return;
    }
    const pages = Math.max(1, Math.ceil(items.length / PAGE));
    const answer = await call(server.gallery({ ...query(), limit: family ? null : PAGE * pages }));
    if (mine !== asked || !answer.videos) return;
    take(answer, []);
  }
  async function more() {
    const mine = (asked += 1),
      answer = await call(server.gallery({ ...query(), offset: items.length }));
    if (mine === asked && answer.videos) take(answer, items);
  }
  function take(answer, before) {
    items = [...before, ...answer.videos.filter((item) => !family || family.includes(item.id))];
    total = family ? items.length : answer.total;
    const known = [...model.options].map((option) => option.value).slice(1);
    if (JSON.stringify(known) !== JSON.stringify(answer.models)) {
      const was = model.value;
      model.replaceChildren(
        el("option", { value: "", text: "Every model" }),
        ...answer.models.map((name) => el("option", { value: name, text: name })),
      );
      if (answer.models.includes(was)) model.value = was;
    }
    draw(answer, before.length);
  }
  function draw(answer, from = 0) {
    chosen = kept(
      chosen,
      items.map((item) => item.id),
    );
    back.hidden = !inBin && !family;
    emptyBin.hidden = !inBin || !items.length;
    for (const node of [search, show, model, sort, grouped.parentElement]) node.hidden = inBin || Boolean(family);
    binButton.hidden = inBin || Boolean(family);
    binButton.querySelector("span").textContent = answer.binned ? `Bin (${answer.binned})` : "Bin";
    const nodes = items.slice(from).map((item) => tile(item, inBin ? inBinActs : acts, chosen.has(item.id)));
    if (from) grid.append(...nodes);
    else grid.replaceChildren(...nodes);
    const searching = !inBin && answer.all > 0;
    none.hidden = items.length > 0;
    none.replaceChildren(
      ...nothing(inBin ? "The bin is empty." : searching ? "No video fits this search and filter." : EMPTY),
    );
    part("count").textContent = items.length
      ? `${inBin ? "In the bin: " : ""}${count(total, "video")}${answer.folder ? ` · ${answer.folder}` : ""}`
      : "";
    const rest = total - items.length;
    part("more").replaceChildren(
      ...(rest > 0 ? [button(`Show more (${rest})`, "down", more, { class: "mg-fill", action: "more" })] : []),
    );
    drawChosen();
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
    expand(item) {
      family = item.versions;
      chosen = new Set();
      refresh();
    },
  };
  const inBinActs = { open: (item) => choose(item, {}), choose };

  // --- what is done with several
  function choose(item, event) {
    const order = items.map((one) => one.id);
    ({ chosen, anchor } = click(chosen, order, item.id, anchor, event.shiftKey));
    const tiles = [...grid.children];
    items.forEach((one, i) => {
      const is = chosen.has(one.id);
      tiles[i].classList.toggle("chosen", is);
      tiles[i].querySelector(".ga-tick").checked = is;
    });
    drawChosen();
  }
  function drawChosen() {
    const bar = part("chosen"),
      ids = [...chosen];
    bar.hidden = !ids.length;
    grid.classList.toggle("choosing", ids.length > 0);
    if (!ids.length) return;
    const clear = button("Clear the selection", "close", () => choose0(), { text: "Clear" });
    const all = button("Select all shown", "check", () => choose0(items.map((item) => item.id)), {
      class: "mg-fill",
      action: "select-all",
    });
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
    bar.replaceChildren(
      el("b", { text: `${ids.length} selected` }),
      ...list,
      all,
      el("span", { class: "mg-grow" }),
      clear,
    );
  }
  function choose0(ids = []) {
    chosen = new Set(ids);
    draw({ binned: 0 }, items.length);
    [...grid.children].forEach((node, i) => {
      const is = chosen.has(items[i].id);
      node.classList.toggle("chosen", is);
      node.querySelector(".ga-tick").checked = is;
    });
  }
  async function starAll(ids, starred) {
    for (const video of ids) if ((await call(server.label({ video, starred }))).error) break;
    refresh();
  }
  async function throwAway(ids) {
    const answer = await call(server.bin({ videos: ids }));
    if (answer.error) return;
    chosen = new Set();
    refresh();
    toast(`${count(ids.length, "video")} moved to the bin.`, "info", {
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
    if (event.key === "Escape" && ids.length) choose0();
    else if (event.key === "Delete" && ids.length && !inBin) throwAway(ids);
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) choose0(items.map((item) => item.id));
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
