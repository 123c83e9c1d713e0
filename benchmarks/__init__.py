"""Scripts that print the times and bytes that the pages quote; results/ holds what some of them printed."""
