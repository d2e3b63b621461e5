// What is not sent yet is kept on the server every two seconds, and in this tab while the server cannot be reached.

import { request, Refused } from "../request.js";

const EVERY_MS = 2000;
const nameOf = (token) => `prefloop.draft.${token}`;

// What was left in this tab and has not reached the server; newer than the server's.
export function draftOfTab(token) {
  const text = sessionStorage.getItem(nameOf(token));
  return text === null ? null : JSON.parse(text);
}

export function forgetDraft(token) {
  sessionStorage.removeItem(nameOf(token));
}

// `read` gives { value, comment, … }; what changes in it is saved. `times` is added without being a change.
export function keepDraft(token, read, times, { changed }) {
  let saved = JSON.stringify(read());
  let isSaving = false;
  let isOver = false;

  async function save({ keepalive = false } = {}) {
    const text = JSON.stringify(read());
    if (isOver || text === saved || (isSaving && !keepalive)) return text === saved;
    const draft = { ...JSON.parse(text), ...times() };
    isSaving = true;
    try {
      sessionStorage.setItem(nameOf(token), JSON.stringify(draft));
    } catch {
      // the tab's own place is full; the server has more
    }
    try {
      await request("PUT", `/api/v1/leases/${token}/draft`, { draft }, { keepalive });
      saved = text;
      if (JSON.stringify(read()) === text) forgetDraft(token);
      changed?.();
      return true;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      return false;
    } finally {
      isSaving = false;
    }
  }

  const timer = setInterval(save, EVERY_MS);
  const leave = () => document.visibilityState === "hidden" && save({ keepalive: true });
  document.addEventListener("visibilitychange", leave);
  return {
    save,
    isSaved: () => JSON.stringify(read()) === saved,
    stop() {
      isOver = true;
      clearInterval(timer);
      document.removeEventListener("visibilitychange", leave);
    },
  };
}
