// How the video lies on the stage: a small one at a whole-number scale, crisp, before a blurred copy of itself.
const BACKDROP = 24; // pixels of the copy; it is blurred anyway

export function mountPicture(stage, video, backdrop) {
  const paper = backdrop.getContext("2d", { alpha: false });
  let columns = 1; // videos side by side
  backdrop.width = backdrop.height = BACKDROP;

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
    backdrop.hidden = video.hidden || video.readyState < 2;
    if (!backdrop.hidden) paper.drawImage(video, 0, 0, BACKDROP, BACKDROP);
  }
  new ResizeObserver(fit).observe(stage);
  for (const name of ["loadedmetadata", "resize", "loadeddata"]) video.addEventListener(name, fit);
  function split(count) {
    columns = count;
    fit();
  }
  return { draw, fit, split };
}
