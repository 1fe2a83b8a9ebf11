// The queue as cards. Waiting ones can be dragged, moved with buttons, edited, cloned and deleted.
import { app, call, emit, on } from "../shared/bus.js";
import { button, el, refill } from "../shared/dom.js";
import { icon } from "../shared/icons.js";
import { cardChoice, mountLanes } from "./lanes.js";

export function mount({ element, props, trigger, server }) {
  const root = element.querySelector(".qu"),
    list = root.querySelector(".qu-list"),
    none = root.querySelector(".mg-empty"),
    toolRow = root.querySelector(".qu-tools"),
    drawLanes = mountLanes(root.querySelector(".qu-cards"), server.status);
  let key = "",
    dragged = null;
  none.append(
    icon("text"),
    el("div", {
      text:
        "Nothing is queued. Every video goes through this list, one after the other. " +
        "The list is still here after a restart.",
    }),
  );

  const act = async (promise) => {
    await call(promise);
    emit("poll");
  };
  const NAMES = {
    waiting: "Waiting",
    running: "Running",
    paused: "Paused",
    finished: "Finished",
    stopped: "Stopped",
    failed: "Failed",
    interrupted: "Interrupted",
  };
  function card(job, place, waiting, lanes) {
    const small = (label, name, handler, extra) =>
      button(`${label}: ${job.title}`, name, handler, {
        iconOnly: true,
        action: label.toLowerCase().split(" ")[0],
        title: label,
        text: label,
        ...extra,
      });
    const buttons = [],
      isWaiting = job.state === "waiting",
      lane = lanes.find((one) => one.job === job.id); // the card that makes it, where there are several
    if (isWaiting)
      buttons.push(
        small("Up", "up", () => act(server.move({ job: job.id, place: place - 1 })), { disabled: place === 0 }),
        small("Down", "down", () => act(server.move({ job: job.id, place: place + 1 })), {
          disabled: place === waiting - 1,
        }),
        small("Edit", "edit", () => {
          props.value = { edit: job.id };
          trigger("edit_job");
        }),
      );
    if (lanes.length && !["running", "finished"].includes(job.state))
      buttons.push(cardChoice(job, lanes, (card) => act(server.tie({ job: job.id, card }))));
    if (job.state === "running")
      buttons.push(
        small("Stop and keep", "stop", () => act(server.stop({ job: job.id }))),
        small("Pause", "pause", () => act(server.pause({ job: job.id }))),
      );
    if (["paused", "stopped", "interrupted", "failed"].includes(job.state))
      buttons.push(
        small("Resume", "play", () => act(server.resume({ job: job.id })), { iconOnly: false, class: "mg-soft" }),
      );
    if (job.state !== "waiting")
      buttons.push(small("Watch", "image", () => emit("show", { job: job.id, open: true }), { iconOnly: false }));
    buttons.push(small("Clone", "copy", () => act(server.clone({ job: job.id }))));
    if (job.state !== "running")
      buttons.push(small("Delete from the list", "trash", () => act(server.remove({ job: job.id }))));
    const node = el(
      "li",
      { class: "qu-job " + job.state, "data-job": job.id, draggable: isWaiting },
      el("span", { class: "mg-pill " + job.state, text: NAMES[job.state] }),
      el(
        "div",
        { class: "qu-main" },
        el("div", { class: "qu-title", text: job.title, title: job.title }),
        el("div", { class: "mg-muted", text: lane ? `card ${lane.card}, ${job.summary}` : job.summary }),
        job.error ? el("div", { class: "qu-error", text: job.error }) : null,
      ),
      el("div", { class: "qu-buttons" }, ...buttons),
      job.state === "running" ? el("div", { class: "mg-bar thin" }, el("i")) : null,
    );
    if (isWaiting) {
      node.addEventListener("dragstart", () => {
        dragged = job.id;
        node.classList.add("dragged");
      });
      node.addEventListener("dragend", () => {
        dragged = null;
        node.classList.remove("dragged");
      });
      node.addEventListener("dragover", (event) => {
        if (dragged && dragged !== job.id) {
          event.preventDefault();
          node.classList.add("before");
        }
      });
      node.addEventListener("dragleave", () => node.classList.remove("before"));
      node.addEventListener("drop", (event) => {
        event.preventDefault();
        event.stopPropagation();
        node.classList.remove("before");
        if (dragged) act(server.move({ job: dragged, place }));
      });
    }
    return node;
  }
  function draw(state) {
    const lanes = state.lanes || [],
      next = JSON.stringify([state.jobs, state.paused, lanes.map((one) => [one.card, one.job])]);
    drawLanes(state);
    if (next !== key && !dragged) {
      key = next;
      const waiting = state.jobs.filter((job) => job.state === "waiting"),
        going = state.jobs.filter((job) => ["running", "paused", "interrupted"].includes(job.state)),
        ended = state.jobs
          .filter((job) => !waiting.includes(job) && !going.includes(job))
          .sort((a, b) => b.ended - a.ended);
      refill(
        list,
        ...going.map((job) => card(job, 0, 0, lanes)),
        ...waiting.map((job, i) => card(job, i, waiting.length, lanes)),
        ...ended.map((job) => card(job, 0, 0, lanes)),
      );
      none.hidden = state.jobs.length > 0;
      refill(
        toolRow,
        button(
          state.paused ? "Start the queue" : "Hold the queue",
          state.paused ? "play" : "pause",
          () => act(server.hold({ held: !state.paused })),
          {
            class: state.paused ? "mg-primary" : "mg-fill",
            action: "hold",
            title: "Start no further video; what runs goes on",
          },
        ),
        button("Clear ended", "trash", () => act(server.clear_ended({})), {
          class: "mg-fill",
          action: "clear",
          disabled: !ended.length,
        }),
      );
    }
    const fractions = new Map(lanes.map((one) => [one.job, one.fraction]));
    if (state.shown && state.shown.progress) fractions.set(state.shown.id, state.shown.progress.fraction);
    for (const node of list.querySelectorAll(".running")) {
      const fraction = fractions.get(node.dataset.job);
      if (fraction) node.querySelector(".mg-bar i").style.width = fraction * 100 + "%";
    }
  }
  on(element, "state", draw);
  if (app.state) draw(app.state);
}
