"use strict";
(() => {
  const box = document.getElementById("animation");
  if (box) {
    const frames = JSON.parse(document.getElementById("frames").textContent);
    const [noisy, means] = box.querySelectorAll("img");
    const button = box.querySelector("button");
    const slider = box.querySelector("input");
    const name = box.querySelector("output");
    const last = frames.names.length - 1;
    // A frame that has been decoded once is shown at once, without a flicker.
    const kept = [...frames.noisy, ...frames.means].map((source) => {
      const image = new Image();
      image.src = source;
      return image;
    });
    let timer = null;

    const show = (place) => {
      noisy.src = kept[place].src;
      means.src = kept[frames.noisy.length + place].src;
      slider.value = place;
      slider.setAttribute("aria-valuetext", frames.names[place]);
      name.textContent = frames.names[place];
      box.dataset.frame = place;
    };
    const pause = () => {
      clearInterval(timer);
      timer = null;
      button.textContent = "Play";
    };
    const play = () => {
      if (Number(slider.value) === last) show(0);
      button.textContent = "Pause";
      timer = setInterval(() => {
        show(Number(slider.value) + 1);
        if (Number(slider.value) === last) pause();
      }, Math.max(90, 3000 / frames.names.length));
    };
    button.addEventListener("click", () => (timer === null ? play() : pause()));
    slider.addEventListener("input", () => {
      pause();
      show(Number(slider.value));
    });
    box.querySelector(".controls").hidden = false;
    show(last);

    // Once, when it comes into view, unless the reader has asked for rest.
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
      const watch = new IntersectionObserver((entries) => {
        if (entries.some((entry) => entry.isIntersecting)) {
          watch.disconnect();
          if (timer === null) play();
        }
      }, { threshold: 0.6 });
      watch.observe(box);
    }
  }
  document.documentElement.dataset.ready = "true";
})();
