/** All clusters at a glance, and one of them in full. */

import { choice, count, dialog, h, images, percent, redraw } from "../dom.js";
import { Grid } from "../grid.js";
import { css } from "../store.js";
import { preview } from "../tiles.js";

export function showClusters(app, host, [id]) {
  return id === undefined ? overview(app, host) : oneCluster(app, host, Number(id));
}

// --- the overview -------------------------------------------------------------------------------

const PICTURES = 12; // as many of them are seen as fit

function overview(app, host) {
  const { store } = app;
  const cards = h("div", { class: "cards" });
  const draw = () => redraw(cards, ...sorted(store, app.order).map((group) => card(store, group)));
  draw();
  host.replaceChildren(
    h("header", { class: "heading" }, h("h1", {}, "Clusters"),
      h("p", { class: "muted" }, "The most typical images of each, those nearest to its centroid.")),
    h("div", { class: "scroll" }, cards),
  );
  return { refresh: draw };
}

export function sorted(store, order) {
  const by = { id: (a, b) => a.id - b.id, size: (a, b) => b.members.length - a.members.length, purity: (a, b) => (a.purity ?? 2) - (b.purity ?? 2) };
  return [...store.groups().values()].sort(by[order]);
}

function card(store, group) {
  return h("a", { class: "card", href: `#clusters/${group.id}`, data: { key: group.id } },
    h("div", { class: "line" },
      h("i", { class: "dot", style: { background: css(store.color(group.id)) } }),
      h("h2", {}, store.title(group.id)),
      group.majority !== null && h("span", { class: "muted" }, store.run.class_names[group.majority])),
    preview(store.run, group.members.slice(0, PICTURES), 42),
    h("p", { class: "line muted" }, h("span", {}, images(group.members.length)),
      group.purity !== null && h("span", {}, `purity ${percent(group.purity)}`)));
}

// --- one cluster --------------------------------------------------------------------------------

function oneCluster(app, host, id) {
  const { store } = app;
  if (!store.group(id)) return overview(app, host);
  if (store.target(id) !== id) { location.replace(`#clusters/${store.target(id)}`); return null; }
  const shown = { order: "near", split: "all", what: "all" };
  const head = clusterHead(store, id);
  const grid = new Grid({ app, label: "", caption: (image) => store.distance[image].toFixed(3), empty: "No image of this cluster is like that." });
  const found = h("p", { class: "muted found", role: "status" });
  const fill = (options) => {
    const { members } = store.group(id);
    const wanted = kept(store, shown, store.group(id));
    grid.element.setAttribute("aria-label", `Images of ${store.title(id)}, ${shown.order === "near" ? "nearest to the centroid" : "farthest from the centroid"} first`);
    grid.show(shown.order === "near" ? wanted : wanted.reverse(), options);
    found.textContent = wanted.length === members.length ? "" : `${count(wanted.length)} of ${images(members.length)}`;
  };
  const set = (key) => (value) => { shown[key] = value; fill(); };
  const filters = h("div", { class: "filters" },
    choice({ label: "Order", chosen: "near", onchoose: set("order"), options: [["near", "Nearest first", "Most typical first"], ["far", "Farthest first", "Least typical first"]] }),
    choice({ label: "Split", chosen: "all", onchoose: set("split"), options: [["all", "All"], ["train", "Training"], ["test", "Held out"]] }),
    choice({ label: "Which", chosen: "all", onchoose: set("what"), options: [["all", "All"], ...(store.run.has_labels ? [["against", "Other class", "Of another class than the most frequent one"]] : []), ["wrong", "Marked wrong"]] }),
    found);
  head.update();
  host.replaceChildren(head.element, filters, grid.element);
  fill(); // in its place, where it knows its width
  let parts = store.group(id).parts.length;
  return {
    grid,
    refresh: () => {
      const group = store.group(id);
      if (group.id !== id) { location.replace(`#clusters/${group.id}`); return; }
      head.update();
      if (group.parts.length !== parts || shown.what === "wrong") { parts = group.parts.length; fill({ keep: true }); }
    },
    close: () => grid.close(),
  };
}

/** The images of a group that pass the filters, nearest first. */
function kept(store, { split, what }, group) {
  const among = what === "wrong" ? store.marked().filter((image) => store.group(store.cluster[image]) === group) : group.members;
  return among.filter((image) => (split === "all" || store.isTrain(image) === (split === "train")) && (what !== "against" || store.isAgainstMajority(image)));
}

/** What stands above the images. It is built once and then changed, so that what has the focus keeps
 * it, and a name half typed stays. */
function clusterHead(store, id) {
  const name = nameField(store, id);
  const facts = h("p", { class: "facts" });
  const parts = h("p", { class: "parts" });
  const classes = h("dl", { class: "confusion", "aria-label": "Classes in this cluster" });
  const element = h("header", { class: "cluster-head" },
    h("div", { class: "line" },
      h("i", { class: "dot large", style: { background: css(store.palette[id]) } }),
      name,
      h("button", { type: "button", class: "with-key", onclick: () => name.select() }, "Name", h("kbd", {}, "N")),
      h("button", { type: "button", onclick: () => mergeDialog(store, store.group(id)) }, "Merge into…")),
    facts, parts, classes);
  const update = () => {
    const group = store.group(id);
    if (document.activeElement !== name) name.value = store.corrections.names[id] ?? "";
    facts.replaceChildren(...factsOf(store, group).map((fact) => h("span", {}, fact)));
    parts.hidden = group.parts.length < 2;
    redraw(parts, "Merged in: ", ...group.parts.filter((part) => part !== id).map((part) => h("button", {
      type: "button", class: "chip", "aria-label": `Separate cluster ${part} again`, data: { key: part }, onclick: () => store.separate(part),
    }, `Cluster ${part}`, h("span", { "aria-hidden": "true" }, " ×"))));
    classes.hidden = !group.ranked.length;
    classes.replaceChildren(...confusion(store, group));
  };
  return { element, update };
}

function factsOf(store, group) {
  const wrong = store.marked().filter((image) => store.group(store.cluster[image]) === group).length;
  return [
    images(group.members.length),
    group.purity !== null && `purity ${percent(group.purity)}`,
    `mean distance ${group.meanDistance.toFixed(3)}`,
    wrong && `${count(wrong)} marked wrong`,
  ].filter(Boolean);
}

function nameField(store, id) {
  const known = () => store.corrections.names[id] ?? "";
  const field = h("input", {
    id: "name", class: "name", type: "text", maxlength: 200, autocomplete: "off", spellcheck: "false",
    "aria-label": `Name of cluster ${id}`, placeholder: `Cluster ${id}`, title: "Name of the cluster (N)",
    onchange: () => { const name = field.value.trim(); if (name !== known()) store.name(id, name); },
    onkeydown: (event) => {
      if (event.key === "Enter") field.blur();
      if (event.key === "Escape") { field.value = known(); field.blur(); }
    },
  });
  return field;
}

/** Which classes lie in the cluster, the most frequent first. */
function confusion(store, group) {
  const [shown, rest] = [group.ranked.slice(0, 6), group.ranked.slice(6)];
  const others = rest.reduce((sum, [, number]) => sum + number, 0);
  const entries = shown.map(([label, number]) => [store.run.class_names[label], number, label === group.majority]);
  if (others) entries.push([`${rest.length} more`, others, false]);
  return entries.map(([name, number, majority]) =>
    h("div", {}, h("dt", { title: name }, name),
      h("dd", {}, h("span", { class: `bar${majority ? " majority" : ""}`, style: { width: `${Math.max(1.5, (100 * number) / group.known)}%` } })),
      h("dd", { class: "number" }, count(number))));
}

function mergeDialog(store, group) {
  const others = sorted(store, "id").filter((other) => other.id !== group.id);
  const select = h("select", { id: "into", size: Math.min(10, Math.max(2, others.length)) },
    others.map((other) => h("option", { value: String(other.id) }, `${store.title(other.id)} – ${images(other.members.length)}`)));
  select.selectedIndex = 0;
  const box = dialog(`Merge ${store.title(group.id)} into`, h("form", {
    method: "dialog",
    onsubmit: (event) => {
      event.preventDefault();
      box.close();
      if (select.value) store.merge(group.id, Number(select.value));
    },
  }, select, h("p", { class: "muted" }, "Both count as one from then on. It can be undone at any time."),
  h("button", { class: "primary" }, "Merge")));
  select.focus();
}
