// The bar on top: the state of the app, light and dark; the poller and the messages live here.
import { app, call, emit, on, toast } from "../shared/bus.js";
import { el } from "../shared/dom.js";
import { memory } from "../shared/format.js";
import { icon } from "../shared/icons.js";
import { mountKeys } from "../shared/keys.js";
import { mountOffline } from "../shared/offline.js";
import { keep, recall } from "../shared/store.js";
import { poller } from "./poll.js";
import { mountNotify } from "./notify.js";
import { mountToasts } from "./toasts.js";

export function mount({ element, server }) {
  const root = element.querySelector(".tb"),
    chips = root.querySelector(".tb-chips");
  document.documentElement.lang = "en";

  // --- prompts for a video that is being made: the run itself says from which second on they apply
  let sent = null;
  const countOf = (shown) => (shown && shown.redirected ? shown.redirected.count : 0);
  on(element, "redirect", async ({ job, ...prompts }) => {
    const before = countOf(app.state.shown),
      answer = await call(server.redirect({ job, ...prompts }));
    if (!answer.error) sent = { job, before };
    emit("poll");
  });
  function hear(shown) {
    if (!sent || !shown || shown.id !== sent.job) return;
    if (countOf(shown) > sent.before) toast(`Applied from second ${shown.redirected.second}.`);
    else if (shown.state === "running") return;
    else toast("The video was finished before the change reached it. Use Redo to make a version with it.");
    sent = null;
  }

  // --- chips
  const chip = (text, extra, dot) =>
    el(
      "span",
      { class: "mg-pill tb-chip " + (extra || "") },
      dot ? el("span", { class: "tb-dot " + dot }) : null,
      el("span", { text }),
    );
  function chipsFor(state, jobs) {
    if (app.offline) return [chip("The app does not answer", "", "off")];
    if (!state) return [];
    const count = (name) => jobs.filter((job) => job.state === name).length,
      waiting = count("waiting"),
      running = count("running"),
      machine = state.machine,
      held = waiting && state.paused,
      more = waiting ? `, ${waiting} waiting` : "";
    return [
      state.running
        ? chip((running > 1 ? `Making ${running} videos` : "Making a video") + more, "running", "busy")
        : chip(waiting ? `${waiting} waiting${held ? ", queue on hold" : ""}` : "Ready", "", held ? "off" : "good"),
      machine.vram_total ? chip(`GPU ${memory(machine.vram_used)} / ${memory(machine.vram_total)}`) : null,
      chip(`RAM ${memory(machine.ram_used)} / ${memory(machine.ram_total)}`, "wide"),
      chip(`${state.model} · ${machine.backend}`, "wide"),
    ].filter(Boolean);
  }
  function draw(jobs) {
    const list = chipsFor(app.state, jobs),
      key = list.map((node) => node.textContent + node.className).join("|");
    if (chips.dataset.key === key) return;
    chips.dataset.key = key;
    chips.replaceChildren(...list);
  }
  on(element, "state", (state) => hear(state.shown));

  // --- light and dark
  const button = root.querySelector(".tb-theme"),
    setTheme = (dark) => document.body.classList.toggle("dark", dark),
    stored = recall("magi-theme");
  button.append(icon("theme"));
  if (stored && !new URLSearchParams(location.search).get("__theme")) setTheme(stored === "dark");
  button.addEventListener("click", () => {
    const dark = !document.body.classList.contains("dark");
    setTheme(dark);
    keep("magi-theme", dark ? "dark" : "light");
  });

  mountToasts(root);
  mountNotify(element, root.querySelector(".tb-notify"));
  mountOffline(element);
  mountKeys(element);
  poller(element, server, draw);
}
