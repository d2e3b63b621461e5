// Sends an answer until the server has it: exactly once, whatever happens in between.
//
// The address carries the lease's token, so the same answer sent twice is one answer. What is on its way is kept in this
// tab, so that a reload in the middle goes on with it.

import { request, Refused } from "../request.js";

const UNSENT = "prefloop.unsent";
const AGAIN_MS = 3000;

export function unsent() {
  const text = sessionStorage.getItem(UNSENT);
  return text === null ? null : JSON.parse(text);
}

// `waiting(why)` is called at every attempt that did not arrive: "offline" | "slow" | "fast" | "session".
// Returns the server's answer; null when `signal` stopped it. Throws Refused for what the server does not take.
export async function deliver(letter, { waiting, signal }) {
  try {
    sessionStorage.setItem(UNSENT, JSON.stringify(letter));
  } catch {
    // too long for the tab's own place: it is still in the page
  }
  for (;;) {
    try {
      const answer = await request("POST", letter.path, letter.body, { signal });
      sessionStorage.removeItem(UNSENT);
      return answer;
    } catch (error) {
      if (error.name === "AbortError") return stopped();
      const why = error instanceof Refused ? reasonToWait(error.status) : null;
      if (why === null) {
        sessionStorage.removeItem(UNSENT);
        throw error;
      }
      waiting(why);
      await pause(signal);
      if (signal?.aborted) return stopped();
    }
  }
}

function stopped() {
  sessionStorage.removeItem(UNSENT);
  return null;
}

function reasonToWait(status) {
  if (status === 0) return navigator.onLine ? "slow" : "offline";
  if (status === 401) return "session";
  if (status === 429) return "fast";
  return status >= 500 ? "slow" : null;
}

export function pause(signal, milliseconds = AGAIN_MS) {
  return new Promise((resolve) => {
    const timer = setTimeout(done, milliseconds);
    function done() {
      clearTimeout(timer);
      removeEventListener("online", done);
      signal?.removeEventListener("abort", done);
      resolve();
    }
    addEventListener("online", done);
    signal?.addEventListener("abort", done);
  });
}
