/** Pictures of images, cut from the strips that the server makes. */

import { h } from "./dom.js";

const STRIP = 32; // pictures per strip

/** Show picture `position` of the list `numbers` in `element`, `size` CSS pixels wide. */
export function paint(element, run, numbers, position, size) {
  const first = position - (position % STRIP);
  const strip = numbers.slice(first, first + STRIP);
  const style = element.style;
  style.width = style.height = `${size}px`;
  style.backgroundImage = `url("tiles/${run.key}/${strip.join(",")}")`;
  style.backgroundSize = `${strip.length * size}px ${size}px`;
  style.backgroundPositionX = `${-(position - first) * size}px`;
}

/** A row of pictures that says nothing to a screen reader: it repeats what is beside it. */
export function preview(run, numbers, size) {
  return h("div", { class: "preview", "aria-hidden": "true" }, Array.from(numbers, (_, position) => {
    const element = h("span", { class: "picture" });
    paint(element, run, numbers, position, size);
    return element;
  }));
}
