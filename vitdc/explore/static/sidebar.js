/** The clusters, always in sight. */

import { count, h, percent } from "./dom.js";
import { css } from "./store.js";
import { sorted } from "./views/clusters.js";

export function drawSidebar(app, host) {
  const { store } = app;
  const groups = sorted(store, app.order);
  const largest = Math.max(...groups.map((group) => group.members.length));
  const order = h("select", { "aria-label": "Order of the clusters", onchange: () => { app.order = order.value; app.refresh(); } },
    [["id", "by number"], ["size", "by size"], ...(store.run.has_labels ? [["purity", "least pure first"]] : [])].map(([value, text]) => h("option", { value, selected: value === app.order }, text)));
  const list = h("ul", {}, groups.map((group) => h("li", {}, entry(app, group, largest))));
  host.replaceChildren(
    h("header", { class: "line" }, h("h2", {}, `${count(groups.length)} clusters`), order), list);
  markCurrent(app, host);
}

function entry(app, group, largest) {
  const { store } = app;
  return h("a", {
    href: `#clusters/${group.id}`, class: "entry", data: { cluster: group.id },
    onclick: (event) => {
      if (!app.view?.focusCluster) return;
      event.preventDefault();
      const only = app.view.focusCluster(group.id);
      app.highlight(only);
    },
  },
  h("i", { class: "dot", style: { background: css(store.color(group.id)) } }),
  h("span", { class: "title" }, store.title(group.id)),
  h("span", { class: "muted label" }, group.majority !== null && !store.corrections.names[group.id] ? store.run.class_names[group.majority] : ""),
  h("span", { class: "number" }, count(group.members.length)),
  h("span", { class: "meter", title: group.purity === null ? "" : `purity ${percent(group.purity)}`, style: { width: `${(100 * group.members.length) / largest}%` } },
    h("span", { style: { width: `${100 * (group.purity ?? 1)}%`, background: css(store.color(group.id)) } })),
  group.purity !== null && h("span", { class: "purity muted" }, percent(group.purity, 0)));
}

export function markCurrent(app, host, cluster = app.route[0] === "clusters" && app.route[1] !== undefined ? Number(app.route[1]) : null) {
  for (const link of host.querySelectorAll(".entry")) {
    const current = cluster !== null && Number(link.dataset.cluster) === cluster;
    link.toggleAttribute("aria-current", current);
    if (current) { link.setAttribute("aria-current", "true"); link.scrollIntoView({ block: "nearest" }); }
  }
}
