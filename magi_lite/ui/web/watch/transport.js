// Under the stage: play, single frames, loop, speed, the time, and what can be done with the frame that is shown.
import { app, emit, on, toast } from "../shared/bus.js";
import { button, el, keepInside, saveAs } from "../shared/dom.js";
import { timecode } from "../shared/format.js";
import { icon } from "../shared/icons.js";
import { provide } from "../shared/keys.js";

const SPEEDS = [0.25, 0.5, 1, 2, 4];
const FASTEST = 4;

/** @param stage goes full screen. @param fps frames a second. @param moved called when the time is another one. */
export function mountTransport({ row, stage, video, player, fps, element, moved }) {
  let speed = 1, // as chosen by the button; J and L play faster until they stop
    rate = 1,
    range = null, // { from, to } in seconds
    backwards = null; // { timer, rate }
  const shown = () => !video.hidden && player.key !== null && stage.offsetParent !== null;
  const ready = () => shown() && player.length > 0; // not while one source gives way to another
  const last = () => Math.max(0, player.length - 1 / fps);
  const seek = (time) => {
    video.currentTime = Math.max(0, Math.min(time, Math.max(0, player.length - 0.5 / fps)));
  };

  // --- actions
  function pause() {
    if (backwards) clearInterval(backwards.timer);
    backwards = null;
    player.pause();
    setRate(speed);
  }
  function play() {
    if (!shown()) return false;
    if (player.playing || backwards) {
      pause();
      return true;
    }
    setRate(speed);
    if (range && (video.currentTime < range.from || video.currentTime >= range.to)) seek(range.from);
    player.play();
    return true;
  }
  function setRate(next) {
    rate = next;
    video.defaultPlaybackRate = video.playbackRate = rate; // another source begins with the default
    speedButton.querySelector("span").textContent = `${rate}×`;
    speedButton.setAttribute("aria-label", `Speed: ${rate}×`);
  }
  function nextSpeed() {
    speed = SPEEDS[(SPEEDS.indexOf(rate) + 1) % SPEEDS.length];
    setRate(speed);
  }
  function shuttle(direction) {
    if (!shown() || (direction && !ready())) return false;
    const doubled = Math.min(FASTEST, Math.max(1, backwards ? backwards.rate : rate) * 2),
      goesOn = direction < 0 ? Boolean(backwards) : !video.paused && !backwards;
    pause();
    if (direction > 0) {
      if (goesOn) setRate(doubled);
      player.play();
    } else if (direction < 0) {
      const back = goesOn ? doubled : 1,
        timer = setInterval(() => {
          if (!element.isConnected || video.currentTime <= 0) pause();
          else seek(video.currentTime - (2 * back) / fps);
        }, 2000 / fps);
      backwards = { timer, rate: back };
    }
    return true;
  }
  function frames(by) {
    if (!ready()) return false;
    pause();
    const frame = Math.floor(video.currentTime * fps + 1e-3) + by;
    seek((Math.max(0, frame) + 0.5) / fps);
    return true;
  }
  function edge(direction) {
    if (!ready()) return false;
    const { segments = [], markers = [] } = app.timeline || {},
      edges = [0, last(), ...segments.flatMap((s) => [s.start, s.end]), ...markers.map((mark) => mark.at)].filter(
        (t) => t <= player.length,
      ),
      now = video.currentTime,
      beyond = edges.filter((t) => (direction < 0 ? t < now - 0.05 : t > now + 0.05)).sort((a, b) => a - b);
    if (beyond.length) seek(direction < 0 ? beyond[beyond.length - 1] : beyond[0]);
    return true;
  }
  function setRange(which) {
    if (!ready()) return false;
    if (!which) {
      loopAll();
      return true;
    }
    const now = video.currentTime,
      from = which === "from" ? now : range ? range.from : 0,
      to = which === "to" ? now : range ? range.to : player.length;
    // A bound set beyond the other one counts; the other one goes.
    range = to > from ? { from, to } : which === "from" ? { from, to: player.length } : { from: 0, to };
    if (range.to <= range.from) range = null;
    loopTitle();
    emit("range", range);
    return true;
  }
  function fullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else if (!ready()) return false;
    else stage.requestFullscreen();
    return true;
  }
  function loopTitle() {
    const note = range ? ` from ${range.from.toFixed(1)} to ${range.to.toFixed(1)} s (click or Alt+X: all of it)` : "";
    loopButton.title = "Loop" + note;
    loopButton.classList.toggle("ranged", Boolean(range));
  }
  function loopAll() {
    range = null;
    emit("range", null);
    loopTitle();
  }
  function toggleLoop() {
    if (range) loopAll();
    else player.looping = !player.looping;
    loopButton.setAttribute("aria-pressed", String(player.looping));
  }

  // --- the frame that is shown
  async function frame() {
    const canvas = el("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }
  const frameName = () => `frame-${timecode(video.currentTime, fps).replaceAll(":", "-")}.png`;
  async function saveFrame() {
    if (!ready()) return;
    saveAs(await frame(), frameName());
  }
  async function startFrom() {
    if (!ready()) return;
    pause();
    const file = new File([await frame()], frameName(), { type: "image/png" });
    emit("take", { file, taken: () => toast("This frame is now the first frame of the next video.") });
  }

  // --- the row
  const small = (label, name, run, extra) => button(label, name, run, { iconOnly: true, ...extra });
  const playButton = small("Play or pause (Space)", "play", play, { action: "play", class: "wa-play" });
  const loopButton = small("Loop", "loop", toggleLoop, { action: "loop" });
  const speedButton = button("Speed", null, nextSpeed, {
    text: "1×",
    action: "speed",
    title: "Speed",
  });
  speedButton.setAttribute("aria-label", "Speed: 1×");
  const slider = el("input", { type: "range", min: "0", max: "1", step: "0.01", value: "0", class: "wa-slider" });
  slider.setAttribute("aria-label", "Position in the video");
  const clock = el("span", { class: "wa-clock" });
  loopButton.setAttribute("aria-pressed", "true");
  keepInside(slider).addEventListener("input", () => seek(Number(slider.value)));
  row.append(
    small("One frame back (←)", "back", () => frames(-1), { action: "frame-back" }),
    playButton,
    small("One frame forward (→)", "forward", () => frames(1), { action: "frame-forward" }),
    clock,
    slider,
    loopButton,
    speedButton,
    small("Save this frame as a picture", "camera", saveFrame, { action: "save-frame" }),
    small("Start a new video from this frame", "image", startFrom, { action: "start-frame", server: true }),
    small("Full screen (F)", "fullscreen", fullscreen, { action: "fullscreen" }),
  );
  provide({ play, shuttle, frames, edge, fullscreen, range: setRange, seconds: (by) => frames(by * fps) });
  provide({
    ends(side) {
      if (!ready()) return false;
      seek(side < 0 ? 0 : last());
      return true;
    },
  });

  // --- following the video
  let at = -1,
    of = -1,
    ticking = false;
  function tick() {
    ticking = false;
    if (!element.isConnected) return;
    const now = video.currentTime,
      total = player.length;
    if (range && player.looping && !video.paused && now >= range.to) seek(range.from);
    if (Math.abs(now - at) > 0.005 || total !== of) {
      at = now;
      of = total;
      slider.max = String(total || 1);
      slider.value = String(now);
      slider.setAttribute("aria-valuetext", `${now.toFixed(1)} of ${total.toFixed(1)} seconds`);
      clock.textContent = `${timecode(now, fps)} / ${timecode(total, fps)}`;
    }
    moved(now);
    if (!video.paused && !video.hidden) follow();
  }
  function follow() {
    if (ticking) return; // a still page draws no frames
    ticking = true;
    requestAnimationFrame(tick);
  }
  for (const name of ["play", "playing", "pause", "seeked", "loadedmetadata", "durationchange", "timeupdate"])
    video.addEventListener(name, follow);
  for (const name of ["play", "pause", "emptied"])
    video.addEventListener(name, () => playButton.replaceChildren(icon(video.paused ? "play" : "pause")));
  video.addEventListener("click", play);
  on(element, "seek", ({ time, scrubbing }) => {
    if (!ready()) return;
    if (scrubbing) pause();
    seek(time);
  });
  return {
    /** Another video is on the stage. */
    forget() {
      if (backwards) clearInterval(backwards.timer);
      backwards = null;
      setRate(speed);
      loopAll();
    },
    time: () => video.currentTime,
    marked: () => ({ range, time: video.currentTime }),
  };
}
