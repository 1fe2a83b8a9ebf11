// The stage: the video as it grows, the preview, the status line, the two bars, and what can be done with the video.
import { app, call, emit, on, toast } from "../shared/bus.js";
import { askFor, button, el, refill } from "../shared/dom.js";
import { askExport } from "../shared/export.js";
import { count, duration } from "../shared/format.js";
import { icon } from "../shared/icons.js";
import { mountCards } from "./cards.js";
import { askExtend, askRedo } from "./dialogs.js";
import { mountPicture } from "./picture.js";
import { Player } from "./player.js";
import { mountTransport } from "./transport.js";
import { mountVersions } from "./versions.js";

const STATES = {
  waiting: "Waiting for its turn",
  paused: "Paused: everything is saved",
  finished: "Finished",
  stopped: "Stopped: the finished seconds are kept",
  failed: "This video failed",
  interrupted: "Interrupted: every finished second is kept",
};
const NOTHING_MADE = {
  stopped: "Stopped before its first second",
  interrupted: "Interrupted before its first second",
};
const RESUMABLE = ["paused", "stopped", "interrupted", "failed"];

export function mount({ element, props, trigger, server, watch, upload }) {
  const root = element.querySelector(".wa"),
    part = (name) => root.querySelector(".wa-" + name);
  const stage = part("stage"),
    video = part("video"),
    preview = part("preview"),
    moments = part("moments"),
    empty = part("empty"),
    transportRow = part("transport"),
    status = part("status"),
    notes = part("notes"),
    actionRow = part("actions"),
    [wholeBar, partBar] = root.querySelectorAll(".mg-bar");
  const player = new Player(video),
    picture = mountPicture(stage, video, part("backdrop"));
  let job = null,
    actionKey = "",
    wasCleared = false; // by a control that goes away with what was on the stage
  const transport = mountTransport({
    row: transportRow,
    stage,
    video,
    player,
    element,
    fps: props.fps,
    moved(time) {
      picture.moved();
      versions.follow();
      if (job) emit("time", { time, job: job.id });
    },
  });

  const versions = mountVersions({
    element,
    tabs: part("versions"),
    stage,
    video,
    picture,
    versionsOf: (id) => server.versions({ video: id }),
    label: (what) => server.label(what),
  });

  mountCards(empty, props.examples, (title) => {
    props.value = { example: title };
    trigger("example");
  });

  // --- state
  function setBar(bar, fraction) {
    bar.firstElementChild.style.width = (fraction === null ? 100 : Math.min(100, fraction * 100)) + "%";
    if (fraction === null) bar.removeAttribute("aria-valuenow");
    else bar.setAttribute("aria-valuenow", String(Math.round(fraction * 100)));
  }
  function statusParts() {
    const p = job.progress;
    if (app.offline) return ["No connection to the app", "this was its last known state"];
    if (job.state === "waiting") return [STATES.waiting, app.state.paused ? "the queue is on hold" : null];
    if (job.state !== "running") {
      const made = job.done ? `${count(job.done, "second")} made` : null,
        took = job.state === "finished" && job.took ? `took ${duration(job.took)}` : null;
      return [job.done ? STATES[job.state] : NOTHING_MADE[job.state] || STATES[job.state], made, took];
    }
    if (!p) return [job.detail || job.phase, duration(job.elapsed)];
    const total = p.chunks === null ? "" : ` of ${p.chunks}`,
      rate = p.seconds_per_chunk,
      speed = rate ? `${(1 / rate).toFixed(rate > 10 ? 3 : 2)}× real time` : null,
      left = p.chunks === null ? `next second in ${duration(p.eta)}` : `${duration(p.eta)} left`;
    return [
      `Second ${Math.min(p.chunk + 1, p.chunks || Infinity)}${total}`,
      `step ${p.step} of ${p.steps}`,
      p.eta === null ? null : left,
      speed,
    ];
  }
  /** The oldest second in the making, as it looks so far. */
  function drawMoments(strip) {
    moments.hidden = !strip;
    if (!strip || moments.dataset.url === strip.url) return;
    moments.dataset.url = strip.url;
    moments.style.backgroundImage = `url("${strip.url}")`;
    moments.style.backgroundSize = `${strip.moments * 100}% 100%`;
    moments.style.aspectRatio = String(strip.aspect);
  }
  function drawStatus() {
    const parts = job ? statusParts().filter(Boolean) : [],
      key = parts.join("|");
    if (status.dataset.key === key) return;
    status.dataset.key = key;
    status.replaceChildren(
      ...parts.flatMap((text, i) => (i ? [el("span", { class: "sep", text: "·" }), text] : [text])),
    );
  }
  function draw(state) {
    const before = job && job.id;
    job = state.shown;
    if ((job && job.id) !== before) transport.forget();
    if (before && !job) emit("time", null);
    const running = Boolean(job && job.state === "running"),
      hasVideo = Boolean(job && job.video_url && job.video_size && job.done > 0),
      previewing = Boolean(running && job.preview);
    if (job) player.show(`${job.id}:${job.started}`, hasVideo ? job.video_url : null, job.video_size, running);
    else player.close();
    video.hidden = !hasVideo;
    transportRow.inert = !hasVideo;
    preview.hidden = !previewing;
    preview.classList.toggle("alone", previewing && !hasVideo);
    drawMoments(running && hasVideo ? job.moving[0] : null);
    if (previewing && preview.src !== job.preview) preview.src = job.preview;
    const coming = Boolean(job && ["waiting", "running"].includes(job.state)) && !hasVideo && !previewing;
    empty.hidden = hasVideo || previewing || coming;
    stage.classList.toggle("coming", coming);
    picture.draw();
    drawStatus();
    part("bars").hidden = !running;
    if (running) {
      const p = job.progress;
      setBar(wholeBar, p ? p.fraction : 0);
      setBar(partBar, p && p.steps ? p.step / p.steps : 0);
    }
    drawNotes();
    drawActions();
    if (wasCleared && !job) empty.querySelector("button").focus({ preventScroll: true });
    if (!job) wasCleared = false;
    document.title = running && job.progress ? `${titleOf(job.progress)} · MAGI Lite` : "MAGI Lite";
  }
  const titleOf = (p) => (p.fraction === null ? `Second ${p.chunk + 1}` : `${Math.round(100 * p.fraction)} %`);
  function drawNotes() {
    const list = job ? job.notices.map((n) => [n.message, n.level]) : [];
    if (job && job.error && job.state !== "running")
      list.push([job.error, job.state === "failed" ? "error" : "warning"]);
    const key = JSON.stringify(list);
    if (notes.dataset.key === key) return;
    notes.dataset.key = key;
    notes.replaceChildren(...list.map(([text, level]) => el("div", { class: "mg-note " + level, text })));
  }

  // --- what can be done with the video
  function runningActions(id) {
    const soft = { class: "mg-fill", server: true };
    return [
      button(
        "Stop & keep",
        "stop",
        () => act(server.stop({ job: id }), "Stopping after this step; finished seconds are kept."),
        {
          ...soft,
          action: "stop",
          title: "End here and keep every finished second",
        },
      ),
      button(
        "Pause",
        "pause",
        () => act(server.pause({ job: id }), "Pausing after this step; the state is saved then."),
        {
          ...soft,
          action: "pause",
          title: "Save the state and free the device; Resume continues exactly there",
        },
      ),
      el("span", { class: "mg-grow" }),
      button("Start another video", "add", another, {
        action: "another",
        title: "Let this one continue and write the next one",
      }),
    ];
  }
  function another() {
    app.attached = null;
    emit("poll");
    toast("This video continues; the Queue tab brings it back here. The timeline is free for the next one.");
  }
  function endedActions(id) {
    const list = [],
      soft = { class: "mg-fill", server: true };
    if (RESUMABLE.includes(job.state))
      list.push(
        button("Resume", "play", () => act(server.resume({ job: id })), {
          class: "mg-primary",
          action: "resume",
          server: true,
        }),
      );
    if (job.project && job.done > 0 && job.state !== "waiting") {
      const current = job,
        extend = () => askExtend((seconds) => act(server.extend({ video: id, seconds }))),
        redo = () => redoFrom(current, transport.time(), null);
      list.push(
        button("Extend", "add", extend, { ...soft, action: "extend", title: "Make more seconds after the last one" }),
        button("Redo from …", "branch", redo, {
          ...soft,
          action: "redo",
          title: "Make the video again from one second on; both versions are kept",
        }),
        el(
          "a",
          {
            class: "mg-btn mg-fill",
            href: job.video_url + "?download",
            download: job.file_name,
            "data-action": "download",
          },
          icon("download"),
          el("span", { text: "Save" }),
        ),
        button(
          "Export …",
          "upload",
          () => askExport({ server, upload }, current.project, { ...current, ...sizeOf(), ...transport.marked() }),
          {
            ...soft,
            action: "export",
            title: "Another format, a part of it, or with sound",
          },
        ),
      );
    }
    const clear = () => {
      app.attached = null;
      wasCleared = true;
      emit("poll");
    };
    return [
      ...list,
      el("span", { class: "mg-grow" }),
      button("Clear", "close", clear, { action: "clear", title: "Empty the stage; the video stays in the gallery" }),
    ];
  }
  const sizeOf = () => ({ width: video.videoWidth, height: video.videoHeight });
  const redoFrom = (current, second, block) =>
    askRedo(current, second, block, (what) => act(server.redo({ video: current.id, ...what })));
  function drawActions() {
    const key = job ? [job.id, job.state, job.project, job.done > 0].join("|") : "";
    if (key === actionKey) return;
    actionKey = key;
    const list = !job ? [] : job.state === "running" ? runningActions(job.id) : endedActions(job.id);
    refill(actionRow, ...list);
  }
  async function act(promise, message) {
    const answer = await call(promise);
    if (answer.error) return answer;
    if (message) toast(message);
    if (answer.job) emit("show", { job: answer.job });
    emit("poll");
    return answer;
  }

  /** A model without weights: nothing is queued, and the download is offered. */
  function offerDownload({ missing: name, size, sentence }) {
    askFor("Cannot start", sentence, [], `Download (${size})`, async () => {
      const answer = await call(server.download({ model: name }));
      if (!answer.error) toast(answer.message || `${name} is being downloaded; the System tab shows how far it is.`);
      return answer;
    });
  }

  /** The same settings make the same video: seldom what is wanted, where a seed came with an older one. */
  function offerAnother(id) {
    toast("There is a video with just these settings already; this one will be the same.", "info", {
      label: "Make another one instead",
      name: "another-seed",
      async run() {
        const answer = await call(server.stop({ job: id }));
        if (!answer.error) emit("another-seed", { instead: id });
      },
    });
  }

  on(element, "state", draw);
  on(element, "offline", () => drawStatus());
  on(element, "redo", ({ block }) => {
    if (job && job.project && job.state !== "waiting" && block.start < job.done) redoFrom(job, block.start, block);
  });
  watch("value", () => {
    const value = props.value;
    if (value && value.missing) offerDownload(value);
    if (!value || !value.job) return;
    if (value.same) offerAnother(value.job);
    if (value.ahead) return;
    app.attached = value.job;
    emit("made");
    emit("poll");
    // On a narrow screen the stage stands below the form.
    if (window.innerWidth <= 760) root.scrollIntoView({ behavior: "smooth", block: "center" });
  });
  if (app.state) draw(app.state);
}
