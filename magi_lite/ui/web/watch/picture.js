// How the video lies on the stage: a small one at a whole-number scale, crisp, before a blurred copy of itself.
const BACKDROP = 24; // pixels of the copy; it is blurred anyway

export function mountPicture(stage, video, backdrop) {
  const paper = backdrop.getContext("2d", { alpha: false });
  backdrop.width = backdrop.height = BACKDROP;

  function fit() {
    const { videoWidth: width, videoHeight: height } = video;
    if (!width || !stage.clientWidth) return;
    const density = window.devicePixelRatio || 1,
      room = Math.min(stage.clientWidth / width, stage.clientHeight / height),
      whole = Math.floor(room * density) / density,
      crisp = whole >= 2;
    video.classList.toggle("crisp", crisp);
    video.style.width = crisp ? width * whole + "px" : "100%";
    video.style.height = crisp ? height * whole + "px" : "100%";
    draw();
  }
  function draw() {
    backdrop.hidden = video.hidden || video.readyState < 2;
    if (!backdrop.hidden) paper.drawImage(video, 0, 0, BACKDROP, BACKDROP);
  }
  new ResizeObserver(fit).observe(stage);
  for (const name of ["loadedmetadata", "resize", "loadeddata"]) video.addEventListener(name, fit);
  return { draw, fit };
}
