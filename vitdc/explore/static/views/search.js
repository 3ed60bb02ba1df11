/** Search by example: the images most like one of the set, or like a file that is not in it. */

import * as api from "../api.js";
import { h, toast } from "../dom.js";
import { Grid } from "../grid.js";
import { css } from "../store.js";
import { paint } from "../tiles.js";

export async function showSearch(app, host, [text]) {
  const { store } = app;
  const distances = new Map();
  const grid = new Grid({ app, label: "Most similar images, the nearest first", caption: (found) => distances.get(found)?.toFixed(3) ?? "" });
  const query = h("section", { class: "query", "aria-label": "Example" });
  const show = (answer, ...content) => {
    distances.clear();
    answer.images.forEach((found, position) => distances.set(found, answer.distances[position]));
    grid.show(answer.images);
    query.replaceChildren(...content, dropZone(lookUp));
  };
  let latest = 0;
  const lookUp = async (file) => {
    const turn = (latest += 1); // an answer that comes after the next question is not shown
    query.replaceChildren(h("p", { class: "waiting" }, h("span", { class: "spinner" }), `Looking at ${file.name}…`));
    try {
      const answer = await api.postFile("api/look-up", file);
      if (turn === latest) show(answer, ...stranger(store, file, answer));
    } catch (error) {
      toast(`${file.name}: ${error.message}`, { kind: "bad", seconds: 10 });
      if (turn === latest) query.replaceChildren(h("p", { class: "bad" }, `${file.name}: ${error.message}`), dropZone(lookUp));
    }
  };
  host.replaceChildren(
    h("header", { class: "heading" }, h("h1", {}, "Search by example"),
      h("p", { class: "muted" }, "Nearest neighbours in embedding space, by Euclidean distance. Press S on any image, or drop a file here.")),
    h("div", { class: "split" }, query, grid.element));
  if (text === undefined) query.replaceChildren(dropZone(lookUp));
  else {
    const image = store.imageNumber(text);
    show(await api.getJson(`api/images/${image}/neighbours`), ...known(store, image));
  }
  return { grid, lookUp, close: () => grid.close() };
}

function known(store, image) {
  const picture = h("span", { class: "picture big" });
  paint(picture, store.run, [image], 0, 160);
  return [picture, h("p", {}, clusterLine(store, store.cluster[image])), h("p", { class: "muted" }, `Image ${image}${store.labelName(image) !== null ? `, class ${store.labelName(image)}` : ""}`)];
}

function stranger(store, file, answer) {
  return [
    h("img", { class: "picture big", src: answer.picture, alt: `${file.name} as the model sees it` }),
    h("p", {}, clusterLine(store, answer.cluster)),
    answer.unsure && h("p", { class: "badge" }, "unsure: unlike the training images"),
    h("dl", { class: "pairs" }, [["file", file.name], ["distance", answer.distance.toFixed(3)], ["margin", answer.margin.toFixed(3)]].map(([key, value]) => [h("dt", {}, key), h("dd", {}, value)])),
  ].filter(Boolean);
}

function clusterLine(store, cluster) {
  return h("a", { class: "line", href: `#clusters/${store.target(cluster)}` },
    h("i", { class: "dot", style: { background: css(store.color(cluster)) } }), h("strong", {}, store.title(cluster)));
}

function dropZone(lookUp) {
  const input = h("input", { type: "file", accept: "image/*", id: "file", class: "hidden-input", onchange: () => { if (input.files[0]) lookUp(input.files[0]); } });
  return h("label", { class: "drop" }, input, h("strong", {}, "Choose an image"), h("span", {}, "or drop one anywhere on the page"));
}
