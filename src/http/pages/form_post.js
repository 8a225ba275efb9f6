// Posts the answer to the client without waiting for a click (OAuth 2.0 Form Post Response Mode).
document.getElementById("answer").submit();
