/** Asking the server. Errors carry the server's own line. */

export class ServerError extends Error {
  constructor(status, body) {
    super(body.error ?? body.detail ?? `the server answered ${status}`);
    this.status = status;
    this.body = body;
  }
}

let shown = {};

/** Say with every request which clusters the page shows: those of another run are not for it. */
export function belongTo(clustering) { shown = { "Vitdc-Clustering": clustering }; }

async function ask(path, { headers, ...options } = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...shown, ...headers } });
  } catch {
    throw new ServerError(0, { error: "vitdc explore does not answer; is it still running?" });
  }
  if (!response.ok) throw new ServerError(response.status, await response.json().catch(() => ({})));
  return response;
}

export const getJson = async (path) => (await ask(path)).json();

/** A binary column, as the given typed array. */
export const getArray = async (path, Type) => new Type(await (await ask(path)).arrayBuffer());

export const postJson = async (path, value) =>
  (await ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) })).json();

export const postFile = async (path, file) => (await ask(path, { method: "POST", body: file })).json();

/** The map if it is there, else how far it is. */
export async function getMap() {
  const response = await ask("api/map");
  if (response.status === 202) return { progress: await response.json() };
  return { coordinates: new Float32Array(await response.arrayBuffer()) };
}
