// Time that somebody spends on a task: it counts while the page is visible, and as work while it is being used.

const IDLE_MS = 30_000;
const TICK_MS = 200;
let lastUse = performance.now();
for (const name of ["pointermove", "pointerdown", "keydown", "wheel", "scroll", "touchmove", "input"]) {
  addEventListener(name, () => (lastUse = performance.now()), { passive: true, capture: true });
}

export function startClock(onTick) {
  let last = performance.now();
  let visible = 0;
  let active = 0;
  let first = null;
  lastUse = last; // a task that comes up is looked at

  function count() {
    const now = performance.now();
    const passed = Math.min(now - last, 5 * TICK_MS); // a machine that slept did not work
    last = now;
    if (document.visibilityState !== "visible") return 0;
    visible += passed;
    if (now - lastUse >= IDLE_MS) return 0;
    active += passed;
    return passed;
  }

  const timer = setInterval(() => onTick(count()), TICK_MS);
  return {
    visibleMs: () => visible,
    activeMs: () => (count(), Math.round(active)),
    firstActionMs: () => (first === null ? null : Math.round(first)),
    acted() {
      count();
      first ??= visible;
    },
    // a draft that goes on counts from where it was left
    restore({ active_ms = 0, first_action_ms = null }) {
      active = Number(active_ms) || 0;
      first = first_action_ms === null ? null : Number(first_action_ms);
    },
    stop: () => clearInterval(timer),
  };
}
