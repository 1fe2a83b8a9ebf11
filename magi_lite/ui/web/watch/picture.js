// How the video lies on the stage: a small one at a whole-number scale, crisp, before a blurred copy of itself.
// The copy is blurred while it is small: a browser that draws without a graphics card blurs a whole stage too slowly.
const COARSE = 24; // pixels of what is blurred
const BACKDROP = 96; // pixels of the copy, which the browser enlarges
const LOOK = "blur(3px) saturate(1.2) brightness(0.55)"; // as .wa-backdrop.plain in watch.css

export function mountPicture(stage, video, backdrop) {
  const paper = backdrop.getContext("2d", { alpha: false });
  const coarse = document.createElement("canvas"),
    draft = coarse.getContext("2d", { alpha: false });
  const byFrame = "requestVideoFrameCallback" in video;
  let columns = 1; // videos side by side
  backdrop.width = backdrop.height = BACKDROP;
  coarse.width = coarse.height = COARSE;
  paper.imageSmoothingQuality = "high";
  if ("filter" in paper) paper.filter = LOOK;
  else backdrop.classList.add("plain");

  function fit() {
    const { videoWidth: width, videoHeight: height } = video;
    if (!width || !stage.clientWidth) return;
    const density = window.devicePixelRatio || 1,
      room = Math.min(stage.clientWidth / columns / width, stage.clientHeight / height),
      whole = Math.floor(room * density) / density,
      crisp = whole >= 2;
    video.classList.toggle("crisp", crisp);
    video.style.width = (crisp ? width * whole : stage.clientWidth / columns) + "px";
    video.style.height = (crisp ? height * whole : stage.clientHeight) + "px";
    draw();
  }
  function draw() {
    backdrop.hidden = video.hidden;
    if (backdrop.hidden || video.readyState < 2) return; // the last copy stands while another source comes
    draft.drawImage(video, 0, 0, COARSE, COARSE);
    paper.drawImage(coarse, 0, 0, BACKDROP, BACKDROP);
  }
  /** The video moved on: where a browser tells of each new frame, that is when the copy is drawn. */
  function moved() {
    if (!byFrame) draw();
  }
  function drawNext() {
    draw();
    video.requestVideoFrameCallback(drawNext);
  }
  if (byFrame) video.requestVideoFrameCallback(drawNext);
  new ResizeObserver(fit).observe(stage);
  for (const name of ["loadedmetadata", "resize", "loadeddata"]) video.addEventListener(name, fit);
  function split(count) {
    columns = count;
    fit();
  }
  return { draw, moved, fit, split };
}
