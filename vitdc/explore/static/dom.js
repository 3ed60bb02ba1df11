/** Building elements. Text is always text: nothing here is parsed as HTML. */

/** An element: `on*` are listeners, `style` an object, `data` its data-*, all else attributes. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") Object.entries(value).forEach(([k, v]) => element.style.setProperty(k, v));
    else if (key === "data") Object.assign(element.dataset, value);
    else if (key === "value") element.value = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const count = (number) => number.toLocaleString("en-US");
export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;
export const images = (number) => `${count(number)} ${number === 1 ? "image" : "images"}`;

/** Replace what is in `host`. What has the focus there keeps it, known by its data-key. */
export function redraw(host, ...children) {
  const key = host.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  host.replaceChildren(...children);
  if (key !== undefined) host.querySelector(`[data-key="${key}"]`)?.focus({ preventScroll: true });
}

/** A row of buttons of which one is chosen. */
export function choice({ label, options, chosen, onchoose }) {
  const group = h("div", { class: "choice", role: "group", "aria-label": label });
  const buttons = options.map(([value, text, title]) =>
    h("button", {
      type: "button", title, "aria-pressed": String(value === chosen), data: { value },
      onclick: () => {
        for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.value === String(value)));
        onchoose(value);
      },
    }, text));
  group.append(...buttons);
  return group;
}

/** A short message at the bottom, with an action if there is one; said twice, it is there once. */
export function toast(text, { action, onaction, seconds = 6, kind = "" } = {}) {
  const box = h("div", { class: `toast ${kind}` }, h("span", {}, text));
  const close = () => box.remove();
  if (action) box.append(h("button", { type: "button", onclick: () => { close(); onaction(); } }, action));
  const host = document.getElementById("toasts");
  for (const other of host.children) if (other.firstElementChild.textContent === text) other.remove();
  while (host.childElementCount > 2) host.firstElementChild.remove();
  host.append(box);
  setTimeout(close, 1000 * seconds);
}

/** A modal dialog, closed by Escape; focus returns to where it was. */
export function dialog(title, ...content) {
  const box = h("dialog", { "aria-label": title },
    h("header", {}, h("h2", {}, title),
      h("button", { type: "button", class: "quiet", "aria-label": "Close", onclick: () => box.close() }, "×")),
    ...content);
  box.addEventListener("close", () => box.remove());
  box.addEventListener("click", (event) => { if (event.target === box) box.close(); });
  document.body.append(box);
  box.showModal();
  return box;
}
