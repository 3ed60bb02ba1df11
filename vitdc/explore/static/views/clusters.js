/** All clusters at a glance, and one of them in full. */

import { choice, count, dialog, h, images, percent } from "../dom.js";
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
  const draw = () => cards.replaceChildren(...sorted(store, app.order).map((group) => card(store, group)));
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
  return h("a", { class: "card", href: `#clusters/${group.id}` },
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
  const shown = { order: "near", split: "all", what: "all" };
  const head = h("header", { class: "cluster-head" });
  const grid = new Grid({
    store, label: `Images of ${store.title(id)}, nearest to the centroid first`, onopen: app.open,
    caption: (image) => store.distance[image].toFixed(3),
  });
  const found = h("p", { class: "muted found", role: "status" });
  const fill = () => {
    const members = store.group(id).members.filter((image) => keeps(store, shown, image));
    grid.show(shown.order === "near" ? members : members.reverse());
    const all = store.group(id).members.length;
    found.textContent = members.length === all ? "" : `${count(members.length)} of ${images(all)}`;
  };
  const set = (key) => (value) => { shown[key] = value; fill(); };
  const filters = h("div", { class: "filters" },
    choice({ label: "Order", chosen: "near", onchoose: set("order"), options: [["near", "Nearest first", "Most typical first"], ["far", "Farthest first", "Least typical first"]] }),
    choice({ label: "Split", chosen: "all", onchoose: set("split"), options: [["all", "All"], ["train", "Training"], ["test", "Held out"]] }),
    choice({ label: "Which", chosen: "all", onchoose: set("what"), options: [["all", "All"], ...(store.run.has_labels ? [["against", "Other class", "Of another class than the most frequent one"]] : []), ["wrong", "Marked wrong"]] }),
    found);
  const refresh = () => {
    const group = store.group(id);
    if (group.id !== id) { location.replace(`#clusters/${group.id}`); return; }
    head.replaceChildren(...headOf(app, group));
  };
  refresh();
  fill();
  host.replaceChildren(head, filters, grid.element);
  let parts = store.group(id).parts.length;
  return {
    grid,
    refresh: () => {
      refresh();
      if (store.group(id).parts.length !== parts || shown.what === "wrong") { parts = store.group(id).parts.length; fill(); }
    },
    close: () => grid.close(),
  };
}

function keeps(store, { split, what }, image) {
  if (split !== "all" && store.isTrain(image) !== (split === "train")) return false;
  if (what === "wrong") return store.isWrong(image);
  return what === "all" || store.isAgainstMajority(image);
}

function headOf(app, group) {
  const { store } = app;
  const wrong = group.members.filter((image) => store.isWrong(image)).length;
  const facts = [
    images(group.members.length),
    group.purity !== null && `purity ${percent(group.purity)}`,
    `mean distance ${(group.members.reduce((sum, image) => sum + store.distance[image], 0) / (group.members.length || 1)).toFixed(3)}`,
    wrong && `${count(wrong)} marked wrong`,
  ];
  return [
    h("div", { class: "line" },
      h("i", { class: "dot large", style: { background: css(store.color(group.id)) } }),
      nameField(store, group),
      h("button", { type: "button", class: "with-key", onclick: () => document.getElementById("name").select() }, "Name", h("kbd", {}, "N")),
      h("button", { type: "button", onclick: () => mergeDialog(store, group) }, "Merge into…")),
    h("p", { class: "facts" }, facts.filter(Boolean).map((fact) => h("span", {}, fact))),
    group.parts.length > 1 && h("p", { class: "parts" }, "Merged in: ",
      group.parts.filter((part) => part !== group.id).map((part) => h("button", {
        type: "button", class: "chip", "aria-label": `Separate cluster ${part} again`, onclick: () => store.separate(part),
      }, `Cluster ${part}`, h("span", { "aria-hidden": "true" }, " ×")))),
    group.ranked.length > 0 && confusion(store, group),
  ].filter(Boolean);
}

function nameField(store, group) {
  const field = h("input", {
    id: "name", class: "name", type: "text", maxlength: 200, autocomplete: "off", spellcheck: "false",
    "aria-label": `Name of cluster ${group.id}`, placeholder: `Cluster ${group.id}`, title: "Name of the cluster (N)",
    value: store.corrections.names[group.id] ?? "",
    onchange: () => save(),
    onkeydown: (event) => {
      if (event.key === "Enter") field.blur();
      if (event.key === "Escape") { field.value = store.corrections.names[group.id] ?? ""; field.blur(); }
    },
  });
  const save = () => {
    const name = field.value.trim();
    if (name !== (store.corrections.names[group.id] ?? "")) store.name(group.id, name);
  };
  return field;
}

/** Which classes lie in the cluster, the most frequent first. */
function confusion(store, group) {
  const [shown, rest] = [group.ranked.slice(0, 6), group.ranked.slice(6)];
  const others = rest.reduce((sum, [, number]) => sum + number, 0);
  const entries = shown.map(([label, number]) => [store.run.class_names[label], number, label === group.majority]);
  if (others) entries.push([`${rest.length} more`, others, false]);
  return h("dl", { class: "confusion", "aria-label": "Classes in this cluster" }, entries.map(([name, number, majority]) =>
    h("div", {}, h("dt", { title: name }, name),
      h("dd", {}, h("span", { class: `bar${majority ? " majority" : ""}`, style: { width: `${Math.max(1.5, (100 * number) / group.known)}%` } })),
      h("dd", { class: "number" }, count(number)))));
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
