// The queue: tells the server when the reader's day begins, and puts Enter on the first Start.

const ahead = -new Date().getTimezoneOffset();
const secure = location.protocol === "https:" ? "; secure" : "";
document.cookie = `prefloop_utc_offset=${ahead}; path=/; max-age=31536000; samesite=lax${secure}`;

document.getElementById("start")?.focus({ preventScroll: true });
